from poplin.cni.deletions import forget_deletion, read_deletions


def test_notes_are_read_and_what_is_none_is_passed_over(tmp_path):
    assert read_deletions(tmp_path) == []
    (tmp_path / "deleted").mkdir()
    for name in ("a.b:c.d", "c1:eth0", "README"):
        (tmp_path / "deleted" / name).touch()
    assert sorted(read_deletions(tmp_path)) == [("a.b", "c.d"), ("c1", "eth0")]
    for _ in range(2):
        forget_deletion(tmp_path, "a.b", "c.d")
        assert read_deletions(tmp_path) == [("c1", "eth0")]
