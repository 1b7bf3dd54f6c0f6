"""Damaged and hostile uploads: each is refused in one line with its status, and leaves nothing behind."""

import gzip
import io
import struct
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from serve_helpers import StubPredictor, serve

from modules import Predictor
from modules.data.case import read_volume
from modules.data.series import import_pydicom
from modules.predict.bundle import ModelBundle
from modules.serve import uploads
from modules.serve.limits import Limits


def _zip(*entries, **options):
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return target.getvalue()


def _set_header(data, offset, form, *values):
    changed = bytearray(gzip.decompress(data))
    struct.pack_into(form, changed, offset, *values)
    return gzip.compress(bytes(changed), mtime=0)


def _encrypt(data):
    """Sets the mark of a password in a zip of one entry."""
    changed = bytearray(data)
    changed[6] |= 1
    changed[changed.index(b"PK\x01\x02") + 8] |= 1
    return bytes(changed)


def _take_name(data):
    """Turns the name of a zip's one entry into a comment in its directory."""
    changed, place = bytearray(data), data.index(b"PK\x01\x02")
    struct.pack_into("<3H", changed, place + 28, 0, 0, 1)
    return bytes(changed)


DICOM = b"\0" * 128 + b"DICM"
HOSTILE = {
    "truncated gzip": ("a.nii.gz", lambda scan: scan[:2000], 400, "Expected a whole NIfTI file in scan.nii.gz. Received: "),
    "empty": ("a.nii.gz", lambda scan: b"", 400, "Expected a whole NIfTI file in scan.nii.gz. Received: Empty file"),
    "no NIfTI": ("a.nii", lambda scan: b"hello" * 100, 400, "Expected a whole NIfTI file in scan.nii."),
    "huge": ("a.nii.gz", lambda scan: _set_header(scan, 42, "<3h", 5000, 5000, 5000), 413, "5000x5000x5000x1 numbers, for"),
    "huge voxels": ("a.nii.gz", lambda scan: _set_header(scan, 280, "<12f", *np.diag([900, 900, 900, 1])[:3].ravel()), 413, "MiB on the"),
    "many times": ("a.nii.gz", lambda scan: _set_header(scan, 40, "<5h", 4, 24, 20, 18, 32000), 413, "24x20x18x32000 numbers"),
    "bytes behind": ("a.nii.gz", lambda scan: gzip.compress(gzip.decompress(scan) + bytes(1 << 24)), 400, "where its header promises"),
    "other channels": ("a.nii.gz", lambda scan: _set_header(scan, 40, "<5h", 4, 24, 20, 9, 2), 400, "Received: 2 in scan.nii.gz."),
    "a detached header": ("a.mhd", lambda scan: b"ElementDataFile = /etc/passwd", 400, "Received: a file that is called 'a.mhd'."),
    "voxels elsewhere": (
        "a.mha",
        lambda scan: b"NDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementSpacing = 1 1 1\nElementDataFile = /etc/passwd\n",
        400,
        "voxels in '/etc/passwd' and not in one file beside its header",
    ),
    "another format": ("../../a.jpg", lambda scan: b"\xff\xd8", 400, "Received: a file that is called 'a.jpg'."),
    "too large": ("a.nii", lambda scan: bytes(2 << 20), 413, "Expected an upload of 1 MiB or less."),
    "no zip": ("a.zip", lambda scan: b"hello", 400, "Expected a whole zip of one DICOM series. Received: File is not a zip file"),
    "cut zip": ("a.zip", lambda scan: _zip(("a.dcm", scan))[:-60], 400, "Expected a whole zip of one DICOM series."),
    "zip bomb": ("a.zip", lambda scan: _zip(("a.dcm", bytes(1 << 25))), 413, "unpacks to 1 MiB or less. Received: 32 MiB."),
    "zip slip": ("a.zip", lambda scan: _zip(("../../evil.dcm", DICOM)), 400, "a name that leads out of it"),
    "absolute": ("a.zip", lambda scan: _zip(("/tmp/evil.dcm", DICOM)), 400, "a name that leads out of it"),
    "password": ("a.zip", lambda scan: _encrypt(_zip(("a.dcm", DICOM))), 400, "without a password"),
    "no name": ("a.zip", lambda scan: _take_name(_zip(("a", DICOM))), 400, "Expected a whole zip of one DICOM series."),
    "no DICOM in it": ("a.zip", lambda scan: _zip(("a.nii.gz", scan)), 400, "Received: 1 other file(s). Send other formats without a zip."),
    "damaged DICOM": ("a.zip", lambda scan: _zip(("a/b.dcm", DICOM + b"hello")), 400, "scan/000000.dcm"),
    "nothing in it": ("a.zip", lambda scan: _zip(), 400, "Received: 0 other file(s)."),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_uploads_are_refused(client, scan, kind):
    if kind == "voxels elsewhere":
        pytest.importorskip("SimpleITK")
    if "DICOM" in kind:
        pytest.importorskip("pydicom")
    name, make, status, text = HOSTILE[kind]
    response = client.post("/predict", files={"file": (name, make(scan.read_bytes()))})
    line = response.json()["error"]
    assert (response.status_code, text in line) == (status, True), response.text
    assert line.startswith("Expected")
    assert "\n" not in line
    assert str(client.temporary) not in line
    assert "Traceback" not in line
    assert list(client.temporary.iterdir()) == []
    assert client.get("/health").json()["waiting"] == 0


def test_other_forms_are_refused(client, scan):
    head = {"content-type": "multipart/form-data; boundary=b"}
    asked = [
        client.post("/predict"),
        client.post("/predict", content=scan.read_bytes()),
        client.post("/predict", content=b"hello", headers=head),
        client.post("/predict", content=b"", headers={"content-type": "multipart/form-data"}),
        client.post("/predict", data={"file": "no file"}),
        client.post("/predict", files={"image": ("a.nii.gz", scan.read_bytes())}),
        client.post("/predict", files=[("file", ("a.nii.gz", b"a")), ("file", ("b.nii.gz", b"b"))]),
        client.post("/predict?answer=dicom", files={"file": ("a.nii.gz", scan.read_bytes())}),
        client.post("/predict", files={"file": ("a.nii.gz", scan.read_bytes())}, data={"series": "4"}),
    ]
    for response in asked:
        assert response.status_code == 400, response.text
        assert response.json()["error"].startswith("Expected ")
    assert asked[7].json() == {"error": "Expected `answer` in zip, json, label. Received: 'dicom'. Choose one."}


def test_a_body_of_unknown_length_is_bounded(client):
    sent = []

    def send():
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.nii"\r\n\r\n'
        for _ in range(40):
            sent.append(1)
            yield bytes(1 << 16)
        yield b"\r\n--b--\r\n"

    response = client.post("/predict", content=send(), headers={"content-type": "multipart/form-data; boundary=b"})
    assert response.status_code == 413


def test_the_entries_of_a_zip_are_counted_before_they_are_listed(client, monkeypatch):
    many = _zip(*((f"{number}.dcm", DICOM) for number in range(4)))
    monkeypatch.setattr(uploads, "MOST_ENTRIES", 3)
    monkeypatch.setattr(zipfile, "ZipFile", None)
    response = client.post("/predict", files={"file": ("a.zip", many)})
    assert (response.status_code, "Expected a zip of 3 files or fewer. Received: 4." in response.text) == (413, True)


def test_channels_come_in_their_order_or_by_name():
    class Stub(StubPredictor):
        channels = ("t1", "t2")

        def save_file(self, paths, folder, **options):
            self.seen = [(path.name, path.read_bytes()) for path in paths]
            raise SystemError

    stub = Stub()
    with serve(stub, Limits()) as client:
        for names in (("file", "file"), ("t1", "t2")):
            files = [(names[0], ("x.nii", b"one")), (names[1], ("y.mha", b"two"))]
            # By name, the order of the parts does not count.
            client.post("/predict", files=files if names[0] == "file" else files[::-1])
            assert stub.seen == [("scan_0000.nii", b"one"), ("scan_0001.mha", b"two")]
        response = client.post("/predict", files=[("t1", ("x.nii", b"one"))])
        assert response.json()["error"] == (
            "Expected a scan as `file`, or one for each of 2 channels in this order: t1, t2. Received: t1. Send it as a form."
        )


def test_slices_that_are_channels_are_not_taken_for_one_another(model, tmp_path):
    """Both are of one series and one place, as the echoes of a scan are."""
    dicom = pytest.importorskip("dicom_helpers")
    pixels = np.random.default_rng(0).integers(0, 400, (2, 17, 18)).astype(np.uint16)
    for name, slice_ in zip("ab", pixels, strict=True):
        dicom.write_series(tmp_path / name, slice_[np.newaxis])
    seen = []

    class Stub(StubPredictor):
        channels = ("t1", "t2")

        def save_file(self, paths, folder, **options):
            case = Predictor([replace(ModelBundle.load(model, "openvino"), channels=self.channels)], ())._find_case(paths, "")
            seen.append(read_volume(case.image_paths, None, case.series).array)
            raise SystemError

    with serve(Stub(), Limits()) as client:
        client.post("/predict", files=[("file", (f"{name}.dcm", (tmp_path / name / "IM0000").read_bytes())) for name in "ab"])
    np.testing.assert_array_equal(seen[0], pixels.transpose(2, 1, 0))


def test_a_package_that_the_server_lacks_is_no_fault_of_the_client(client, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    import_pydicom.cache_clear()
    try:
        response = client.post("/predict", files={"file": ("a.dcm", DICOM)})
    finally:
        import_pydicom.cache_clear()
    assert response.status_code == 501
    assert response.json()["error"].endswith("Install it: pip install pydicom; the extra 'formats' of this program has all such packages.")
