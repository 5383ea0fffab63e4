"""Image archives, read back with the standard library."""

import hashlib
import io
import json
import tarfile

from poplin.lab.cri.image import File, Image, busybox_files, make_archive

IMAGE = Image(
    ["registry.test/a:1", "registry.test/b:2"],
    {"bin/tool": File(b"#!", 0o755), "bin/other": File(link="tool", mode=0o777), "tmp/": File(mode=0o1777)},
    ["/bin/tool", "argument"],
)


def unpack(archive):
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {entry.name: (entry, tar.extractfile(entry)) for entry in tar}


def read(archive):
    return {name: file.read() for name, (_, file) in unpack(archive).items() if file is not None}


def blob(files, descriptor):
    content = files["blobs/" + descriptor["digest"].replace(":", "/")]
    assert descriptor["digest"] == "sha256:" + hashlib.sha256(content).hexdigest()
    assert descriptor["size"] == len(content)
    return content


def test_an_archive_is_an_image_layout():
    files = read(make_archive([IMAGE]))
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    entries = json.loads(files["index.json"])["manifests"]
    assert [e["annotations"]["io.containerd.image.name"] for e in entries] == list(IMAGE.names)
    manifest = json.loads(blob(files, entries[0]))
    config = json.loads(blob(files, manifest["config"]))
    [layer] = manifest["layers"]
    assert config["rootfs"]["diff_ids"] == [layer["digest"]]
    assert config["config"]["Cmd"] == ["/bin/tool", "argument"]
    content = unpack(blob(files, layer))
    assert content["bin/tool"][0].mode == 0o755
    assert content["bin/other"][0].linkname == "tool"
    assert content["tmp"][0].isdir()
    assert content["tmp"][0].mode == 0o1777


def test_an_archive_holds_every_image_and_each_blob_once():
    other = Image(["registry.test/c:3"], IMAGE.files, ["/bin/other"])
    files = read(make_archive([IMAGE, other]))
    assert len(json.loads(files["index.json"])["manifests"]) == 3
    # Two configurations, two manifests, and the layer that they share.
    assert sum(name.startswith("blobs/") for name in files) == 5


def test_the_same_files_make_the_same_archive():
    assert make_archive([IMAGE]) == make_archive([IMAGE])


def test_busybox_is_a_program_and_links_to_it():
    files = busybox_files(b"binary", ["busybox", "ls", "sh"])
    assert files["bin/busybox"] == File(b"binary", 0o755)
    assert {name for name, file in files.items() if file.link == "busybox"} == {"bin/ls", "bin/sh"}
