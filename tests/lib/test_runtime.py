"""Independent jobs side by side."""

import threading

import pytest

from lowdim import runtime


def test_results_keep_the_order_of_the_jobs_and_errors_come_through():
    assert runtime.parallel(lambda job: job * job, range(7)) == [job * job for job in range(7)]
    assert runtime.parallel(str, []) == []
    with pytest.raises(ZeroDivisionError):
        runtime.parallel(lambda job: 1 / job, [1, 0])


def test_one_worker_is_one_thread():
    names = runtime.parallel(lambda job: threading.get_ident(), range(5), workers=1)
    assert len(set(names)) == 1
