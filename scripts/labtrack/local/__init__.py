"""Tracking for one person in one project, with no server: experiments, room on the disk, clean-up, backups."""
