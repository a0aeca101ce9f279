"""What Terraform is given: the completed lab, with the cloud's ids, and the one login that was resolved here."""
