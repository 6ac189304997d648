#!/bin/sh
# The checks of dashboard and API that need more than cargo; `cargo xtask test --only browser` runs them, too.
#
#   tests/browser/run.sh [NAME]...      of access api dashboard load metrics states; all of them without any
#
# The dashboard under attack (attack.test.mjs) needs the lab: cargo xtask test --only browser, as root.
#
# Needs these Debian packages; npm and pip fetch the rest into tests/browser and target:
PACKAGES="chromium nodejs npm python3-venv prometheus"
# ANOMALY_BIN is the daemon (default: the debug build, made here), ANOMALY_PICTURES a directory for screenshots.
set -eu

cd "$(dirname "$0")/../.."
missing=
for pair in chromium:chromium node:nodejs npm:npm python3:python3-venv promtool:prometheus; do
    command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair#*:}"
done
if [ -n "$missing" ]; then
    echo "missing:$missing; as root: apt-get install --no-install-recommends $PACKAGES" >&2
    exit 1
fi
if [ -z "${ANOMALY_BIN:-}" ]; then
    cargo build --quiet --package anomaly
    ANOMALY_BIN=${CARGO_TARGET_DIR:-$PWD/target}/debug/anomaly
fi
export ANOMALY_BIN

cd tests/browser
npm ci --silent
[ $# -gt 0 ] || set -- metrics api access dashboard states load
failed=0
for name in "$@"; do
    node --test "$name.test.mjs" || failed=1
done
exit $failed
