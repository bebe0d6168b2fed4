"""Cores that may be used: the processor's affinity, and the quota of control groups."""

import os

import pytest

from nemoconv.resharding.cores import usable_cores


@pytest.fixture(autouse=True)
def sixteen(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)


def put(root, name, text):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_control_groups_it_is_the_affinity(tmp_path):
    assert usable_cores(tmp_path) == 16


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"job/step": "max 100000\n"}, 16),
        ({"job/step": "400000 100000\n"}, 4),
        ({"job/step": "250000 100000\n"}, 3),  # two cores and a half: three threads, sometimes stopped
        ({"job/step": "1000 100000\n"}, 1),
        ({"job": "200000 100000\n", "job/step": "max 100000\n"}, 2),  # the group above counts too
        ({"job": "800000 100000\n", "job/step": "6400000 100000\n"}, 8),
        ({"": "300000 100000\n"}, 3),  # in a container its own group is the root
        ({"job/step": "nonsense"}, 16),
    ],
)
def test_the_quota_of_version_2(tmp_path, limits, expected):
    put(tmp_path, "proc/self/cgroup", "0::/job/step\n")
    for group, text in limits.items():
        put(tmp_path, f"sys/fs/cgroup/{group}/cpu.max", text)
    assert usable_cores(tmp_path) == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", 16), ("350000", 4)])
def test_the_quota_of_version_1(tmp_path, quota, expected):
    put(tmp_path, "proc/self/cgroup", "3:memory:/job\n2:cpu,cpuacct:/job\n")
    put(tmp_path, "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", quota)
    put(tmp_path, "sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "100000")
    assert usable_cores(tmp_path) == expected


def test_a_platform_without_affinity(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    assert usable_cores(tmp_path) == 10
