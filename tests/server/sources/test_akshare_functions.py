"""What the files of the package say about its functions is what the package itself says."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

from fletching_server.sources import akshare_functions

if importlib.util.find_spec("akshare") is None:
    pytest.skip("akshare is not installed", allow_module_level=True)

ASK = """
import inspect, json, sys
import akshare
print(json.dumps({name: list(inspect.signature(getattr(akshare, name)).parameters) for name in json.load(sys.stdin)}))
"""


def test_parameters_are_those_of_the_functions() -> None:
    names = [*akshare_functions.functions()[::20], "stock_zh_a_hist", "stock_news_em"]
    told = subprocess.run([sys.executable, "-c", ASK], input=json.dumps(names), capture_output=True, text=True, check=True)
    assert {name: list(akshare_functions.parameters(name) or ()) for name in names} == json.loads(told.stdout)


def test_there_are_a_thousand_functions_and_no_private_ones() -> None:
    names = akshare_functions.functions()
    assert len(names) > 1000
    assert not any(name.startswith("_") for name in names)
    assert akshare_functions.parameters("no_such_function") is None


def test_nothing_of_the_package_is_imported() -> None:
    code = (
        "import sys\n"
        "from fletching_server.sources import akshare_functions as f\n"
        "assert f.parameters('stock_zh_a_hist')[:2] == ('symbol', 'period')\n"
        "raise SystemExit(f'imported: {found}' if (found := {'akshare', 'pandas'} & set(sys.modules)) else 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
