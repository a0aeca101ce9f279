"""The client of a tracking server: addresses, login, requests, and what is asked of it."""
