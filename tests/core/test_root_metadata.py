from daskpipe.core.root_metadata import read_root


def test_read_root_gives_the_metadata(tmp_path):
    (tmp_path / "zarr.json").write_text('{"attributes": {"daskpipe_schema": "daskpipe/1", "seed": 1}}')
    assert read_root(tmp_path)["attributes"]["seed"] == 1  # its errors: tests/store/test_reader.py
