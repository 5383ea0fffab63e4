import json

import pytest

from poplin.cni.error import CniError, as_cni_error, encode_error
from poplin.model.errors import InvalidInputError, KernelError, PoplinError, TemporaryError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CniError(3, "gone"), 3),
        (InvalidInputError("wrong"), 7),
        (TemporaryError("later"), 11),
        (KernelError("busy", errno=16), 11),
        (PoplinError("broken"), 100),
    ],
)
def test_every_kind_of_error_has_its_code(error, code):
    assert as_cni_error(error).code == code


def test_the_message_has_place_and_remedy():
    error = as_cni_error(PoplinError("broken", where="here", remedy="mend it"))
    assert json.loads(encode_error(error, "1.0.0")) == {
        "cniVersion": "1.0.0",
        "code": 100,
        "msg": "here: broken; mend it",
        "details": "",
    }
