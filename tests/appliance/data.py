"""The data disk as an installer leaves it."""

import subprocess
from pathlib import Path

from tests.appliance.image.build import Image

DATA_BYTES = 256 * 1024**2
BLOCK_BYTES = 4096


def data_image(image: Image, folder: Path) -> Path:
    """ext4, its root the agent's."""
    path = folder / "data.img"
    with path.open("wb") as file:
        file.truncate(DATA_BYTES)
    command = ("mkfs.ext4", "-q", "-F", "-b", str(BLOCK_BYTES), "-E", f"root_owner={image.owner}")
    subprocess.run([*command, str(path)], check=True)
    return path
