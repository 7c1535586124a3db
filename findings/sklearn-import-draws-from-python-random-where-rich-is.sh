#!/usr/bin/env bash
# scikit-learn 1.9.1 with Rich 15.0.0: a first `import sklearn.preprocessing` draws from Python's global random stream.
#
# Valid code: a seed, an import that stands where it is needed, a draw.
# What one would guess: an import does not move the stream; and whether Rich is installed, which scikit-learn does not
#   require and nobody imported, makes no difference to numbers.
# Expected: random.random() after random.seed(0) is 0.8444218515250481, with and without the import, with and without Rich.
# Seen: `sklearn.base` imports `sklearn.callback`, whose progress bar imports Rich where it is installed; `rich.style` takes
#   `random.getrandbits(24)` when it is imported. Every later draw is another one than without Rich, on whoever imports first:
#   the same seeded program gives other numbers in an environment with Rich, and other ones if something imported
#   scikit-learn before the seed was set. `import sklearn` alone and `import rich` alone do not draw.
# Exit status: 0 if seen again, 1 if the behaviour has changed.
set -euo pipefail
unset PYTHONPATH

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check scikit-learn==1.9.1 numpy
cd "$folder"
cat >draw.py <<'CODE'
import importlib
import random
import sys

random.seed(0)
for name in sys.argv[1:]:
    importlib.import_module(name)
print(random.random())
CODE
draw() { "$folder/venv/bin/python" draw.py "$@"; }

plain=$(draw)
without=$(draw sklearn.preprocessing)
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check rich==15.0.0
alone=$(draw sklearn)
rich=$(draw rich)
with=$(draw sklearn.preprocessing)
style=$(draw rich.style)
echo "after random.seed(0): $plain; import sklearn.preprocessing, without Rich: $without; with Rich: $with"
echo "import rich: $rich; import sklearn: $alone; import rich.style: $style"
if [ "$plain" = "$without" ] && [ "$plain" = "$alone" ] && [ "$plain" = "$rich" ] && [ "$plain" != "$with" ] && [ "$with" = "$style" ]; then
  echo "as recorded"
else
  echo "CHANGED: not what was recorded for scikit-learn 1.9.1 and Rich 15.0.0"
  exit 1
fi
