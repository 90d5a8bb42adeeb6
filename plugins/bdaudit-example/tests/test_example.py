"""The contract's own tests, one a check; add yours beside them."""

from bdaudit_example import HeadReset

from bdaudit.testing import Conformance


class TestHeadReset(Conformance):
    plugin = HeadReset
