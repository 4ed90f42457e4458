"""Writes what is inside an image: an SBOM (CycloneDX, JSON) and the terms of the software of others.

Usage: python scripts/describe_image.py IMAGE LOCK FOLDER

Asks Docker for the image's package metadata, and writes FOLDER/NAME.cdx.json and FOLDER/NAME.notices.txt,
NAME being the image's with "-" for what no file name should hold. LOCK says with which SHA-256 each Python
package was installed. `make images` runs it.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from packaging.utils import canonicalize_name

OWN = "calib-core"
ENVIRONMENT = "opt/calib"
COPY = (
    f"cd / && find {ENVIRONMENT}/lib -name '*.dist-info' -print0 | tar -cf - --null -T - "
    f"{ENVIRONMENT}/pyvenv.cfg var/lib/dpkg/status usr/lib/os-release"
)
PIN = re.compile(r"(?P<name>[\w.-]+)==\S+ --hash=sha256:(?P<sha256>[0-9a-f]{64})")
TERMS = re.compile(r"(?i)(licen[cs]e|notice|copying|authors)[^/]*$")
LICENSES = LicenseFactory()


def main() -> None:
    """Describe the image that the command line names."""
    image, lock, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        copy_metadata(image, root)
        bom, notices = describe(image, root, lock)
    out.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^\w.-]+", "-", image)
    for path, text in ((out / f"{name}.cdx.json", bom), (out / f"{name}.notices.txt", notices)):
        path.write_text(text)
        print(f"Wrote {path}: {len(text):,} characters", file=sys.stderr)


def copy_metadata(image: str, root: Path) -> None:
    """Copy the files that describe an image's packages to a folder."""
    made = subprocess.run(
        ["docker", "run", "--rm", "--network=none", image, "sh", "-ec", COPY],
        capture_output=True,
        check=True,
    )
    with tarfile.open(fileobj=io.BytesIO(made.stdout)) as archive:
        archive.extractall(root, filter="data")


def describe(image: str, root: Path, lock: Path) -> tuple[str, str]:
    """The SBOM and the notices of an image.

    Args:
        image: its name and tag.
        root: folder that holds its `pyvenv.cfg`, `*.dist-info` folders, `dpkg/status` and `os-release`.
        lock: Python packages with their SHA-256, as pip takes them.

    Raises:
        ValueError: the SBOM is not valid, or a package of the lock is not in the image.
    """
    (folder,) = root.glob(f"{ENVIRONMENT}/lib/python3.*/site-packages")
    found = sorted(metadata.distributions(path=[str(folder)]), key=lambda made: made.metadata["Name"].lower())
    pins = map(PIN.match, lock.read_text().splitlines())
    hashes = {canonicalize_name(pin["name"]): pin["sha256"] for pin in pins if pin}
    names = {canonicalize_name(distribution.metadata["Name"]) for distribution in found}
    if missing := sorted(hashes.keys() - names):
        raise ValueError(f"{image}: has no {', '.join(missing)}, which {lock} names; build it again")
    name, _, version = image.partition(":")
    itself = Component(name=name, version=version, type=ComponentType.CONTAINER, bom_ref=image)
    parts = [
        interpreter(root),
        *(python_component(made, hashes) for made in found),
        *debian_components(root),
    ]
    bom = Bom(components=parts)
    bom.metadata.component = itself
    bom.register_dependency(itself, parts)
    text = JsonV1Dot6(bom).output_as_string(indent=1) + "\n"
    if error := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        raise ValueError(f"the SBOM of {image} is not valid: {error}")
    return text, "".join(notices(image, found))


def interpreter(root: Path) -> Component:
    """The image's Python."""
    settings = (root / ENVIRONMENT / "pyvenv.cfg").read_text()
    version = re.findall(r"^version\s*=\s*(\S+)", settings, re.MULTILINE)[0]
    return Component(
        name="python",
        version=version,
        type=ComponentType.PLATFORM,
        purl=PackageURL("generic", name="python", version=version),
        bom_ref=f"python=={version}",
        licenses=[LICENSES.make_from_string("PSF-2.0")],
    )


def python_component(distribution: metadata.Distribution, hashes: dict[str, str]) -> Component:
    """A Python package, with the hash of the file that it was installed from where the lock has it."""
    about = distribution.metadata
    name, version = canonicalize_name(about["Name"]), about["Version"]
    licence, home = stated_licence(distribution), about.get("Home-page") or ""
    return Component(
        name=about["Name"],
        version=version,
        type=ComponentType.LIBRARY,
        purl=PackageURL("pypi", name=name, version=version),
        bom_ref=f"{name}=={version}",
        description=about.get("Summary") or None,
        licenses=[LICENSES.make_from_string(licence)] if licence else [],
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=hashes[name])] if name in hashes else [],
        external_references=[ExternalReference(type=ExternalReferenceType.WEBSITE, url=XsUri(home))]
        if home.startswith("http")
        else [],
    )


def debian_components(root: Path) -> Iterator[Component]:
    """The base's Debian packages."""
    system = dict(
        line.split("=", 1) for line in (root / "usr/lib/os-release").read_text().splitlines() if "=" in line
    )
    distro = f"{system['ID']}-{system.get('VERSION_ID', '')}".replace('"', "").rstrip("-")
    for paragraph in (root / "var/lib/dpkg/status").read_text().split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|Architecture|Status): (.+)$", paragraph, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed"):
            name, version = fields["Package"], fields["Version"]
            where = {"arch": fields["Architecture"], "distro": distro}
            yield Component(
                name=name,
                version=version,
                type=ComponentType.LIBRARY,
                purl=PackageURL("deb", system["ID"], name, version, qualifiers=where),
                bom_ref=f"deb:{name}:{fields['Architecture']}={version}",
            )


def stated_licence(distribution: metadata.Distribution) -> str:
    """The licence that a package states: an SPDX expression or a name; empty if it states none."""
    about = distribution.metadata
    classifiers = [
        line.rpartition(" :: ")[2]
        for line in about.get_all("Classifier") or []
        if line.startswith("License :: ") and line != "License :: OSI Approved"
    ]
    plain = (about.get("License") or "").strip()
    short = plain if "\n" not in plain and len(plain) <= 80 else ""  # others put the whole text there
    return about.get("License-Expression") or short or " OR ".join(classifiers)


def notices(image: str, distributions: Iterable[metadata.Distribution]) -> Iterator[str]:
    """What has to go along with an image: each package's licence and notices, as they came with it."""
    yield (
        f"Software of others in {image}\n\n"
        "Python packages, each with the licence that its metadata state and the texts that came with it.\n"
        "The terms of the Debian packages are in the image, /usr/share/doc/PACKAGE/copyright.\n"
    )
    for distribution in distributions:
        about = distribution.metadata
        if about["Name"] == OWN:
            continue
        yield f"\n{'=' * 100}\n{about['Name']} {about['Version']}\n"
        yield f"Licence: {stated_licence(distribution) or 'not stated'}\n"
        for home in filter(None, [about.get("Home-page"), *(about.get_all("Project-URL") or [])]):
            yield f"{home}\n"
        for file in distribution.files or []:
            if ".dist-info/" in str(file) and TERMS.search(str(file)):
                text = Path(str(file.locate())).read_text(errors="replace")
                yield f"\n{'-' * 100}\n{file}\n\n{text.strip()}\n"


if __name__ == "__main__":
    main()
