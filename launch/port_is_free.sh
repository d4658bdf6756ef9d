#!/usr/bin/env bash
# launch/port_is_free.sh HOST PORT: prints yes if a server can listen there, and nothing if it cannot.
"$(dirname "$0")/../.venv/bin/python" - "$@" 2> /dev/null << 'END'
import socket
import sys

with socket.socket() as server:
    # Set as servers set it, so that a port whose last connections are just closing counts as free.
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((sys.argv[1], int(sys.argv[2])))
print("yes")
END
