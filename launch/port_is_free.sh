#!/usr/bin/env bash
# launch/port_is_free.sh HOST PORT: prints yes where a server could listen there, and nothing where it could not.
"$(dirname "$0")/../.venv/bin/python" - "$@" 2> /dev/null << 'END'
import socket
import sys

with socket.socket() as one:
    # As servers do: a port whose last connections are just being closed is free.
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind((sys.argv[1], int(sys.argv[2])))
print("yes")
END
