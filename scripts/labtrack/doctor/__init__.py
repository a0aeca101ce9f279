"""Checks that say what they saw and how to fix it, for the researcher, the admin and the tests."""
