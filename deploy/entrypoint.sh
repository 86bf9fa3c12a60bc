#!/bin/sh
# Gives numba a writable copy of the kernels compiled into the image (it does not cache without a writable directory,
# and the image's file system may be read-only), then becomes the server: the arguments are its command.
set -eu
if [ ! -d "$NUMBA_CACHE_DIR" ]; then
    # A copy that was cut off must not look like a whole one.
    rm -rf "$NUMBA_CACHE_DIR.tmp"
    if cp -R /opt/laser/numba-cache "$NUMBA_CACHE_DIR.tmp"; then
        mv "$NUMBA_CACHE_DIR.tmp" "$NUMBA_CACHE_DIR"
    fi
fi
exec "$@"
