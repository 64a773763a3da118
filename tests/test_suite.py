"""How the suite is divided: `make test` makes expensive fixtures once."""

import pytest


@pytest.mark.xdist_group("suite")
def test_a_group_of_tests_stays_in_one_worker(request):
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("needs --dist loadgroup")
    # xdist 3.8 sorts by names of tests, which it cannot change in pytest 9.2: it says nothing
    assert request.node.nodeid.endswith("@suite")
