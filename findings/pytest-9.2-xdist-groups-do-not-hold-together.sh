#!/usr/bin/env bash
# pytest 9.2.0 with pytest-xdist 3.8.0: `--dist loadgroup` no longer groups anything, and nothing says so.
#
# Valid code: four tests of one `xdist_group`, two workers.
# What one would guess: they run in one worker, as with pytest 9.1.1; or, where the two versions do not go together, the
#   installer or the run says so (xdist asks for pytest>=7.0.0).
# Expected: one worker.
# Seen: two. xdist marks the group by appending it to `item._nodeid`, and from 9.2.0 on the name is made from another
#   attribute: what is appended nobody reads. The run still says "scheduling tests via LoadGroupScheduling". Fixtures of
#   module and session are set up once in every worker (here a suite took a third longer), and tests that a group keeps from
#   running beside each other do run beside each other.
# Exit status: 0 if seen again, 1 if the behaviour has changed.
set -euo pipefail
unset PYTHONPATH PYTEST_ADDOPTS

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
cd "$folder"
cat >test_group.py <<'CODE'
import time

import pytest


@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(4))
def test_of_a_group(number):
    time.sleep(0.2)
CODE
workers() {
  "$folder/venv/bin/pip" install --quiet --disable-pip-version-check "pytest==$1" pytest-xdist==3.8.0
  "$folder/venv/bin/python" -m pytest -p no:cacheprovider -n 2 --dist loadgroup -v test_group.py >out.txt
  grep -q "4 passed" out.txt
  grep -o '^\[gw[0-9]*\]' out.txt | sort -u | wc -l
}

before=$(workers 9.1.1)
now=$(workers 9.2.0)
echo "workers that ran one group: $before with pytest 9.1.1, $now with pytest 9.2.0"
if [ "$before" -eq 1 ] && [ "$now" -eq 2 ]; then
  echo "as recorded"
else
  echo "CHANGED: not what was recorded for pytest 9.2.0 and pytest-xdist 3.8.0"
  exit 1
fi
