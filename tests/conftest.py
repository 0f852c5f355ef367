"""What holds for the whole suite.

With PLUMTREE_NO_SKIPS set, a skipped test is a failed one. SIGINT interrupts: a shell starts what
it runs in the background with SIGINT ignored, which the commands under test would inherit. And
Hypothesis has no clock: an example that a busy machine interrupts for 200 ms is no slow example.
"""

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")


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
