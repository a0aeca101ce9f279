"""What a lab's next run needs and git does not have: one encrypted file, and the server's copy of it.

Where it is kept and why: docs/decisions/0020-the-server-keeps-the-labs-files.md.
"""
