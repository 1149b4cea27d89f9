from pathlib import Path

import pytest

from mosrt.host.cpu import usable_cores


def cores(tmp_path: Path, membership: str, files: dict[str, str]) -> int:
    (tmp_path / "membership").write_text(membership)
    for name, text in files.items():
        file = tmp_path / "mount" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return usable_cores(mount=tmp_path / "mount", membership=tmp_path / "membership")


@pytest.fixture(autouse=True)
def affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)), raising=False)


def test_no_cgroups_means_affinity(tmp_path: Path) -> None:
    assert usable_cores(mount=tmp_path / "none", membership=tmp_path / "none") == 16


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 16), ("200000 100000", 2), ("50000 100000", 1), ("1600000000 100000", 16)],
)
def test_version_2(tmp_path: Path, quota: str, expected: int) -> None:
    assert cores(tmp_path, "0::/app\n", {"app/cpu.max": quota}) == expected


def test_version_2_takes_the_tightest_ancestor(tmp_path: Path) -> None:
    files = {"cpu.max": "300000 100000", "a/cpu.max": "max 100000", "a/b/cpu.max": "800000 100000"}
    assert cores(tmp_path, "0::/a/b\n", files) == 3


@pytest.mark.parametrize(("quota", "expected"), [("-1", 16), ("400000", 4)])
def test_version_1(tmp_path: Path, quota: str, expected: int) -> None:
    files = {"cpu/x/cpu.cfs_quota_us": quota, "cpu/x/cpu.cfs_period_us": "100000"}
    assert cores(tmp_path, "4:memory:/x\n3:cpu,cpuacct:/x\n", files) == expected


def test_nonsense_is_no_quota(tmp_path: Path) -> None:
    files = {"cpu.max": "what ever", "app/cpu.max": "1 0"}
    assert cores(tmp_path, "0::/app\nnonsense\n", files) == 16
