"""The OpenStack cloud the lab lives in."""
