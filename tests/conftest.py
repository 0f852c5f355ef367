"""What holds for the whole suite.

With PLUMTREE_NO_SKIPS set, a skipped test is a failed one. And SIGINT interrupts: a shell starts
what it runs in the background with SIGINT ignored, which the commands under test would inherit.
"""

import os
import signal

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _fail_if_skipped(report, what):
    skipped = report.skipped and not hasattr(report, "wasxfail")
    if skipped and os.environ.get("PLUMTREE_NO_SKIPS"):
        report.outcome = "failed"
        report.longrepr = f"{what} was skipped, and PLUMTREE_NO_SKIPS is set"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    return _fail_if_skipped((yield), item.nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    return _fail_if_skipped((yield), collector.nodeid)
