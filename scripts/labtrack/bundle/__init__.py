"""labtrack bundle: what a helper needs to see when a lab has trouble, without its secrets."""
