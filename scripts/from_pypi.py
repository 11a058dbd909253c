"""For scripts that need a package from PyPI: a virtual environment below the user's cache, made once."""

import os
import subprocess
import sys

CACHE = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "consent-gate")


def with_packages(name, packages):
    """Continues inside the virtual environment of this name, which has these packages."""
    folder = os.path.join(CACHE, name)
    python = os.path.join(folder, "bin", "python")
    if os.path.realpath(sys.prefix) == os.path.realpath(folder):
        return
    if not os.path.exists(os.path.join(folder, "installed")):
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", *packages], check=True)
        open(os.path.join(folder, "installed"), "w").close()
    os.execv(python, [python, *sys.argv])
