"""The checks of reports in a browser: `python -m tests.browser [--screenshots FOLDER] [--axe FILE]`.

They need Chromium, its driver and selenium: `apt-get install chromium chromium-driver`, `pip install -e '.[browser]'`.
With axe-core (`npm install axe-core`; FILE is its `axe.min.js`), they also look for what keeps people from using a
report: https://github.com/dequelabs/axe-core.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.browser", description=__doc__)
    parser.add_argument("--screenshots", type=Path, metavar="FOLDER", help="write a picture of each view there")
    parser.add_argument("--axe", type=Path, metavar="FILE", help="axe-core's axe.min.js")
    options = parser.parse_args()
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    missing += ["selenium"] if importlib.util.find_spec("selenium") is None else []
    if missing:
        print(f"missing: {', '.join(missing)}", file=sys.stderr)
        return 2
    if options.screenshots is not None:
        options.screenshots.mkdir(parents=True, exist_ok=True)
        os.environ["REPORT_SCREENSHOTS"] = str(options.screenshots.resolve())
    checks = [str(Path(__file__).with_name("report_checks.py"))]
    if options.axe is not None:
        os.environ["REPORT_AXE"] = str(options.axe.resolve())
    else:
        print("No --axe: what axe-core finds is not looked for.")
        checks += ["-k", "not axe"]
    return int(pytest.main(checks))


if __name__ == "__main__":
    sys.exit(main())
