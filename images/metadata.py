"""Write the project's name and version into a folder of its code, where importlib.metadata finds them.

python3 metadata.py FOLDER
"""

import sys
from pathlib import Path

import tomllib

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
name, version = project["name"], project["version"]
folder = Path(sys.argv[1]) / f"{name.replace('-', '_')}-{version}.dist-info"
folder.mkdir(parents=True)
(folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
