"""python -m wp1.peaks: measures this device's peak rates once and keeps them for later runs.

FLOP/s come from the fastest of a few square matrix products in BF16. Bytes/s come from the faster of a copy (bytes read
and written) and a dot product (bytes read), over arrays that fit in no cache. MFU and MBU are relative to these peaks
if no table states the device's (`wp1.machine.stated_peaks`). It takes a few seconds, needs an otherwise idle machine,
and starts no engine. If it is run again, the higher figures are kept.
"""

import json
from dataclasses import asdict

from wp1.core import command
from wp1.core.errors import WP1Error
from wp1.machine import hardware
from wp1.machine.peaks import DTYPE, device_name, keep, measure
from wp1.machine.stated_peaks import stated


@command.guarded
def main() -> None:
    parser = command.Parser(prog="python -m wp1.peaks", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    as_json = parser.parse_args().json
    name = device_name(hardware.describe())
    try:
        peaks = keep(measure(name))
    except (ImportError, RuntimeError) as error:  # no torch, or not enough device memory
        raise WP1Error(f"{name} could not be measured: {' '.join(str(error).split())[:200]}") from error
    if as_json:
        print(json.dumps(asdict(peaks)))
        return
    print(f"{name}: {peaks.flops / 1e12:,.2f} TFLOP/s in {DTYPE}, {peaks.bytes_per_s / 1e9:,.1f} GB/s")
    table = stated(name)
    if table is not None:
        print(
            f"stated: {table.flops / 1e12:,.2f} TFLOP/s, {table.bytes_per_s / 1e9:,.1f} GB/s ({table.source}); "
            "MFU and MBU are relative to these"
        )


if __name__ == "__main__":
    main()
