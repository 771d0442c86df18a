"""The first layer: Debian's tree, a kernel with i6300esb, and what that begins with.

Debian comes from where this machine's own apt gets it. The kernel is the generic one (that of the
cloud has no i6300esb); it is taken out of its package, and so are the few modules that are needed.
"""

import shutil
from pathlib import Path

from tests.appliance.image.layers import Input, archive, run, said

HERE = Path(__file__).parent
SUITE = "bookworm"
PACKAGES = (
    *("systemd-sysv", "udev", "e2fsprogs", "python3", "python3-venv", "libstdc++6"),
    *("zlib1g", "procps", "util-linux"),
)
KERNEL = ("linux-image-amd64", "busybox-static")
# In the order of `insmod`; what they need comes before them by itself.
MODULES = (
    *("virtio_pci", "virtio_blk", "virtio_net", "virtio_rng", "crc32c_generic", "ext4"),
    *("i6300esb", "autofs4"),
)
NOT_NEEDED = ("doc", "man", "locale")  # of /usr/share


def inputs() -> list[Input]:
    """What this layer depends on."""
    return [HERE / "debian.py", HERE / "init"]


def make(new: Path) -> None:
    """`root`, a tree; `vmlinuz` and `initrd.gz`."""
    options = ["--quiet", "--aptopt=Acquire::Languages none"]
    lean = [f"--dpkgopt=path-exclude=/usr/share/{one}/*" for one in NOT_NEEDED]
    bare = ["--variant=minbase", *lean, f"--include={','.join(PACKAGES)}"]
    run("mmdebstrap", *options, *bare, SUITE, new / "root", *_sources())
    kernel = new / "kernel"
    taken_out = ["--variant=extract", f"--include={','.join(KERNEL)}"]
    run("mmdebstrap", *options, *taken_out, SUITE, kernel, *_sources())
    (image,) = (kernel / "boot").glob("vmlinuz-*")
    shutil.copy(image, new / "vmlinuz")
    _make_initrd(kernel, image.name.removeprefix("vmlinuz-"), new)
    shutil.rmtree(kernel)


def _sources() -> list[str]:
    """Where this machine's apt gets this suite of Debian; none: mmdebstrap knows a place."""
    form = "--format=deb $(REPO_URI) $(RELEASE) $(COMPONENT)"
    lines = said("apt-get", "indextargets", form, "Created-By: Packages", "Origin: Debian")
    return sorted({line for line in lines if line.split()[2].startswith(SUITE)})


def _make_initrd(kernel: Path, version: str, new: Path) -> None:
    """busybox, the modules in their order, and `init`."""
    tree = new / "initrd"
    (tree / "modules").mkdir(parents=True)
    (tree / "bin").mkdir()
    shutil.copy(kernel / "bin" / "busybox", tree / "bin")
    shutil.copy(HERE / "init", tree)
    run("depmod", "-b", kernel, version)
    order: list[str] = []
    for name in MODULES:
        needs = said("modprobe", "-d", kernel, "-S", version, "--show-depends", name)
        paths = [line.split()[1] for line in needs if line.startswith("insmod ")]
        order += [path for path in paths if path not in order]
    for path in order:
        shutil.copy(path, tree / "modules")
    (tree / "order").write_text("".join(f"{Path(path).name}\n" for path in order))
    archive(tree, new / "initrd.gz")
    shutil.rmtree(tree)
