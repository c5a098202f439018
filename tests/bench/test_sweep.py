"""What holds for every sweep."""

from gdn_lab.tolerances import Check, merged


def test_a_call_is_right_if_all_its_parts_are():
    right, wrong = Check(True, 0.1, 0.2), Check(False, 0.3, None)
    for parts in ([right, wrong], [wrong, right]):
        assert merged(parts) == Check(False, 0.3, None)
    assert merged([right, right]) == right and not merged([]).right
