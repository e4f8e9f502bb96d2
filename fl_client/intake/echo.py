"""Whether our own DICOM port answers: a C-ECHO to ourselves, as `konsil-site check` sends it."""

from __future__ import annotations

import ssl

from pynetdicom import AE
from pynetdicom.sop_class import Verification

from fl_client.site import DicomDoor

CALLING = "KONSIL-CHECK"
TIMEOUT_S = 5.0


def echo(door: DicomDoor) -> str:
    """What became of it, in words that start with "ours" if the port answers as it should.

    A door that knows its peers turns a stranger away, which it also does to us: that counts as an answer.
    """
    asking = AE(ae_title=CALLING)
    asking.acse_timeout = asking.dimse_timeout = asking.network_timeout = asking.connection_timeout = TIMEOUT_S
    asking.add_requested_context(Verification)
    arguments = (_tls(door), door.host) if door.tls else None
    line = asking.associate(door.host, door.port, ae_title=door.ae_title, tls_args=arguments)
    if line.is_established:
        try:
            status = line.send_c_echo()
        finally:
            line.release()
        if "Status" in status and status.Status == 0:
            return f"ours, and {door.ae_title} answers C-ECHO"
        return f"{door.ae_title} took the association and did not answer C-ECHO; look at the intake's log"
    if line.is_rejected:
        return "ours, and it turned us away, as it does with everybody who is not in dicom.peers"
    return "nobody answers in DICOM's manner, although the intake runs; look at its log"


def _tls(door: DicomDoor) -> ssl.SSLContext:
    if door.tls is None:
        raise ValueError("this door has no TLS")
    context = ssl.create_default_context(cafile=door.tls.authority)
    context.check_hostname = False  # we know whom we dial; certificates of archives seldom name addresses
    context.load_cert_chain(door.tls.certificate, door.tls.key)
    return context
