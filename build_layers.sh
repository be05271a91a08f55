#!/bin/sh
# Prepares the layers of the images: Dockerfile.model_in_image and Dockerfile.model_load run each
# command of this script in a build stage of its own.
#
#   build_layers.sh libraries      installs serving/requirements.txt    -> /layers/libraries
#   build_layers.sh code NAME      compiles Python code in /layers/NAME
#   build_layers.sh readable DIR   fixes permissions and dates of DIR
#
# Docker stores and transfers equal layers once, so the same content must give the same bytes:
# bytecode contains hashes instead of dates, and every file is dated 1970-01-01.
set -eu

libraries() {
    apt-get update
    apt-get install -y --no-install-recommends binutils # for strip

    python -m venv --without-pip /opt/venv
    pip="pip --python /opt/venv/bin/python"
    $pip install --no-compile --no-deps --require-hashes -r /requirements.txt
    # Only onnxruntime's tools and gunicorn's gevent worker import these; the server uses neither.
    $pip uninstall -y flatbuffers packaging protobuf

    cd /opt/venv/lib/python3*/site-packages
    # The server never opens these files. libonnxruntime.so.* is a copy for C programs; Python uses
    # the extension module beside it.
    rm -r /opt/venv/bin/[!p]* /opt/venv/include fastapi_offline/static/redoc* \
        numpy/_core/include numpy/_core/lib numpy/f2py numpy/random/lib numpy/testing \
        onnxruntime/capi/libonnxruntime.so.* onnxruntime/datasets onnxruntime/quantization \
        onnxruntime/tools onnxruntime/transformers
    find . -depth \( -name tests -o -name __pycache__ -o -name '*_tests.*.so' \
        -o -name '*.py[ix]' -o -name '*.px[di]' -o -name '*.[ch]' \) -exec rm -r {} +
    # Debug symbols are not needed. numpy.libs is left out: strip breaks numpy's bundled libraries.
    find . -name '*.so' ! -path './numpy.libs/*' -exec strip --strip-unneeded {} +

    # Compile all bytecode now, including Python's standard library, which the base image ships
    # without bytecode: a read-only container cannot store bytecode and would compile at each start.
    stdlib=$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
    compile /opt/venv
    compile -x '/(ensurepip|idlelib|lib2to3|pydoc_data|site-packages|test|tkinter|turtledemo)/' \
        "$stdlib"

    # The layer contains the environment and the bytecode of the standard library.
    mkdir -p /layers/libraries
    find /opt/venv -type f -o -type l >/files
    find "$stdlib" -path '*/site-packages' -prune -o -name '*.pyc' -print >>/files
    xargs -a /files cp -a --parents -t /layers/libraries
    reset_dates /layers
}

code() {
    # -s and -p: tracebacks show paths in the image (/app/…), not in this build stage.
    compile -s "/layers/$1" -p / "/layers/$1"
    readable "/layers/$1"
}

# The server runs as another user than root, whatever the permissions in the build context are.
readable() {
    chmod -R a=rX "$1"
    reset_dates "$1"
}

compile() {
    python -m compileall -q -j 0 --invalidation-mode unchecked-hash "$@"
}

reset_dates() {
    find "$1" -exec touch -h -d @0 {} +
}

"$@"
