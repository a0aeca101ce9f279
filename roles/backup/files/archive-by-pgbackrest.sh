#!/bin/sh
# PostgreSQL's archive_command, called in its data folder: archive-by-pgbackrest SEGMENT.
# (pgBackRest refuses a server whose archive_command does not have its name.)
pgbackrest --stanza=labtrack archive-push "$1" && exit
code=$?
# A server that stops tries its last segment three times, often twice over, and answers nobody meanwhile: minutes, where
# the store is away. The segment is sent when the server is back. Above 125, PostgreSQL gives up at once.
if grep -q stopping postmaster.pid; then exit 255; fi
exit $code
