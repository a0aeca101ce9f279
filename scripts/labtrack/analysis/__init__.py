"""Looking at results: runs of any store as a table, and what is made of it."""
