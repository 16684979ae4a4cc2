"""Independent jobs side by side."""

import threading

import pytest
import torch

from lowdim import runtime


def test_results_keep_the_order_of_the_jobs_and_errors_come_through():
    assert runtime.parallel(lambda job: job * job, range(7)) == [job * job for job in range(7)]
    assert runtime.parallel(str, []) == []
    begun = []
    assert runtime.parallel(lambda job: begun.append(job) or -job, [2, 3, 1], workers=1, cost=lambda job: job) == [
        -2,
        -3,
        -1,
    ]
    assert begun == [3, 2, 1]  # the longest first
    with pytest.raises(ZeroDivisionError):
        runtime.parallel(lambda job: 1 / job, [1, 0])


def test_one_worker_is_one_thread():
    names = runtime.parallel(lambda job: threading.get_ident(), range(5), workers=1)
    assert len(set(names)) == 1


def test_named_jobs_draw_from_generators_of_their_own():
    jobs = {name: lambda own: torch.rand(3, generator=own) for name in "abc"}
    one = runtime.run_jobs(jobs, runtime.generator(0), workers=1)
    two = runtime.run_jobs(jobs, runtime.generator(0), workers=2)
    assert list(one) == list("abc")
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["a"], one["b"])
    assert runtime.run_jobs({"x": lambda: 1, 2: lambda: "y"}) == {"x": 1, 2: "y"}
    assert runtime.run_jobs({}, runtime.generator(0)) == {}
    with pytest.raises(runtime.ParameterError, match=r"jobs must be a dictionary of functions, got \{'x': 3\}"):
        runtime.run_jobs({"x": 3})
