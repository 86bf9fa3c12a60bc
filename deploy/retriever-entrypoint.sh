#!/bin/sh
# Gives numba a writable copy of the kernels compiled into the image (it refuses to start without a writable cache
# directory, and the image's file system may be read-only), then becomes the server.
set -eu
if [ ! -d "$NUMBA_CACHE_DIR" ]; then
    cp -R /opt/laser/numba-cache "$NUMBA_CACHE_DIR"
fi
exec laser-retriever "$@"
