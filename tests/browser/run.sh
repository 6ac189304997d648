#!/bin/sh
# The checks of dashboard and API that need more than cargo: a browser, schemathesis, promtool.
#
#   tests/browser/run.sh [STEP]...      steps: browser load api metrics; all of them without any
#
# Needs these Debian packages, and what npm and pip fetch into tests/browser and target:
PACKAGES="chromium nodejs npm python3-venv prometheus"
SCHEMATHESIS=4.32.5
# ANOMALY_BIN is the daemon (default: the debug build, made here), ANOMALY_PICTURES a directory for screenshots.
set -eu

cd "$(dirname "$0")/../.."
here=$PWD/tests/browser
target=${CARGO_TARGET_DIR:-$PWD/target}

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
    ANOMALY_BIN=$target/debug/anomaly
fi
export ANOMALY_BIN

cd "$here"
npm ci --silent
venv=$target/schemathesis-$SCHEMATHESIS

step() {
    echo "== $1"
    case $1 in
        browser) node --test --test-concurrency=1 dashboard.test.mjs access.test.mjs ;;
        load) node --test load.test.mjs ;;
        api)
            if [ ! -x "$venv/bin/schemathesis" ]; then
                python3 -m venv "$venv"
                "$venv/bin/pip" install --quiet "schemathesis==$SCHEMATHESIS"
            fi
            SCHEMATHESIS_BIN=$venv/bin/schemathesis node api.mjs
            ;;
        metrics) node metrics.mjs ;;
        *) echo "no such step: $1" >&2; exit 2 ;;
    esac
}

[ $# -gt 0 ] || set -- metrics api browser load
for name in "$@"; do step "$name"; done
