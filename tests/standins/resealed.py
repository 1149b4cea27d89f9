"""Makes a changed bundle consistent again, as someone who means harm would."""

import hashlib
import json
from pathlib import Path


def resealed(bundle: Path) -> Path:
    """Writes the size and SHA-256 of every file into the manifest; gives the bundle back."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    for variant in manifest["variants"].values():
        for member in variant["members"]:
            for entry in (member["graph"], member.get("weights")):
                if entry is not None:
                    data = (bundle / entry["path"]).read_bytes()
                    entry.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    path.write_text(json.dumps(manifest))
    return bundle
