"""Checks that say what they saw and how to mend it, for the researcher, the admin and the tests."""
