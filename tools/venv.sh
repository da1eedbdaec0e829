#!/bin/sh
# Make .venv, or mend it, with what pyproject.toml and constraints.txt ask for. If nothing is
# to be done, it takes milliseconds.
#
# usage: sh tools/venv.sh PYTHON OLDEST, such as python3 3.11
set -eu
python=$1
oldest=$2
bin=.venv/bin
ready=.venv/.ready

stop() {
  echo "make: $1" >&2
  exit 1
}

# Its commands, and the package, are found by the path at which they were installed.
if [ -f $bin/pip ] && ! head -n 3 $bin/pip | grep -qF "$(pwd -P)/$bin/"; then
  stop ".venv was made for another folder and does not work in this one: rm -rf .venv, then make again"
fi
if $bin/python -c 'import pip' 2>/dev/null; then
  $bin/python tools/fits.py "$oldest" "rm -rf .venv, then make PYTHON=python3.12"
  if [ -f $ready ] && [ -z "$(find pyproject.toml constraints.txt -newer $ready)" ]; then
    exit 0
  fi
else
  command -v "$python" >/dev/null || stop "no $python; expected Python $oldest to 3.13: make PYTHON=python3.12"
  "$python" tools/fits.py "$oldest" "make PYTHON=python3.12"
  rm -f $ready $bin/python* # links to a Python that is gone would be kept
  "$python" -m venv .venv
fi
echo "Installing into .venv; the first time takes minutes"
$bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
touch $ready
