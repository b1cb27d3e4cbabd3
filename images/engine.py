"""What builds and runs images on this machine: docker, podman or buildah."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tessera.errors import InputError

ENGINES = ("docker", "podman", "buildah")


@dataclass(frozen=True)
class Engine:
    """One of ENGINES, as a command that answers."""

    name: str

    @classmethod
    def find(cls) -> "Engine":
        """The engine named by TESSERA_IMAGE_ENGINE, else the first that answers.

        Raises:
            InputError: none does.
        """
        chosen = os.environ.get("TESSERA_IMAGE_ENGINE")
        for name in (chosen,) if chosen else ENGINES:
            if shutil.which(name) and cls(name)._succeeds("info"):
                return cls(name)
        raise InputError(f"{chosen or 'none of ' + ', '.join(ENGINES)} answers on this machine; install or start one.")

    def has(self, image: str) -> bool:
        """Is the image on this machine?"""
        inspect = ["inspect", "--type", "image"] if self.name == "buildah" else ["image", "inspect"]
        return self._succeeds(*inspect, image)

    def pull(self, image: str) -> bool:
        """Fetch an image from its registry; False where that fails."""
        return self._succeeds("pull", image)

    def local(self, image: str) -> str:
        """A name of an image that was built here, as a FROM takes it: podman knows those without a registry by this."""
        registry, slash, _ = image.partition("/")
        qualified = slash and ("." in registry or ":" in registry or registry == "localhost")
        return image if qualified or self.name == "docker" else f"localhost/{image}"

    def size(self, image: str) -> int:
        """Bytes of an image's layers, unpacked."""
        if self.name == "buildah":
            listed = json.loads(self.said("images", "--json", image))
            return _bytes(listed[0]["size"])
        return int(json.loads(self.said("image", "inspect", image))[0]["Size"])

    def build(
        self,
        containerfile: Path,
        context: Path,
        image: str,
        arguments: Mapping[str, str],
        labels: Mapping[str, str],
        pip: Path,
        mounts: Sequence[Path],
    ) -> None:
        """Build an image and name it.

        Args:
            pip: file of pip's settings, which the build sees as the secret of this name.
            mounts: files and folders that those settings name, to be seen at the same places.

        Raises:
            InputError: it could not be built.
        """
        if self.name == "docker" and mounts:
            raise InputError(
                f"pip is configured with {mounts[0]}, which docker cannot show to a build; "
                f"use podman or buildah (TESSERA_IMAGE_ENGINE), or an index with a URL."
            )
        command = [self.name, "build", "--file", str(containerfile), "--tag", image, "--secret", f"id=pip,src={pip}"]
        command += [] if self.name == "docker" else ["--layers", "--jobs", "1"]
        for flag, given in (("--build-arg", arguments), ("--label", labels)):
            command += [word for name, value in given.items() for word in (flag, f"{name}={value}")]
        command += [word for path in mounts for word in ("--volume", f"{path}:{path}:ro")]
        # Builds run nothing but pip: what a chroot separates is enough, and works inside of containers too.
        variables = {"BUILDAH_ISOLATION": "chroot", **os.environ, "DOCKER_BUILDKIT": "1"}
        if subprocess.run([*command, str(context)], env=variables, check=False).returncode:
            raise InputError(f"{image} could not be built; what {self.name} says above tells why.")

    def push(self, image: str) -> str:
        """Put an image into its registry; returns the digest that the registry knows it by, as sha256:...

        Raises:
            InputError: the registry did not take it.
        """
        with tempfile.TemporaryDirectory(prefix="tessera-push-") as folder:
            noted = Path(folder) / "digest"
            more = [] if self.name == "docker" else ["--digestfile", str(noted)]
            if subprocess.run([self.name, "push", *more, image], check=False).returncode:
                raise InputError(
                    f"{image} could not be pushed; set TESSERA_IMAGE_PREFIX to your registry, and log in to it."
                )
            if noted.exists():
                return noted.read_text(encoding="utf-8").strip()
        known = json.loads(self.said("image", "inspect", image))[0]["RepoDigests"]
        name = image.rpartition(":")[0]
        return next(one.partition("@")[2] for one in known if one.partition("@")[0].endswith(name))

    def confined(self, image: str, volumes: Mapping[Path, str]) -> list[str]:
        """The start of a command line that runs something in an image: no network, no privileges, a read-only root."""
        command = [self.name, "run", "--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp:rw,mode=1777"]
        command += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--user", _user()]
        # By themselves, engines ask for limits that they have no right to give where they are confined too.
        command += ["--ulimit", "nofile=4096:4096", "--ulimit", "nproc=16384:16384"]
        if self.name == "podman" and os.getuid():
            command += ["--userns", "keep-id"]
        return [*command, *(word for path, seen in volumes.items() for word in ("--volume", f"{path}:{seen}")), image]

    def said(self, *arguments: str) -> str:
        """What a command of the engine prints."""
        return subprocess.run([self.name, *arguments], capture_output=True, text=True, check=True).stdout

    def _succeeds(self, *arguments: str) -> bool:
        return subprocess.run([self.name, *arguments], capture_output=True, check=False).returncode == 0


def _user() -> str:
    """Whoever runs this, so that what a container writes is theirs; the images' own user instead of root."""
    return f"{os.getuid()}:{os.getgid()}" if os.getuid() else "10001:10001"


def _bytes(told: str) -> int:
    number, unit = told.split()
    return int(float(number) * {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9}[unit.upper()])
