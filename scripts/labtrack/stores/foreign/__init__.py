"""What other trackers recorded, read without their packages: one module for each of them."""
