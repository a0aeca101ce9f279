"""Running a command as a tracked job: recorded on disk, sent while it runs, ended with the truth about its end."""
