"""What ``child_main`` may return, what becomes of it, and that a result is never lost in silence."""

import importlib.util
import json
import random
import struct

import pytest

LIMITS = '[profile.default.limits]\noutput = "64K"\n'


def lines(pyspawner, function, jobs, *flags, **options):
    done = pyspawner.map(f"results.{function}", jobs, "--ordered", *flags, **options)
    assert len(done.lines) == len(jobs), done
    assert done.status == int(any(line["outcome"] != "ok" for line in done.lines))
    assert done.said == ""
    return done.lines


def check(pyspawner, table, *flags):
    """Each expression's value has this JSON and this note; a job's own output is untouched."""
    found = {}
    for expression, line in zip(table, lines(pyspawner, "evaluate", [[e] for e in table], *flags), strict=True):
        assert (line["exit_code"], line["signal"], line["stdout"], line["stderr"]) == (0, None, "said\n", ""), line
        text = json.dumps(line["result"], ensure_ascii=False, separators=(",", ":"))
        found[expression] = (text if line["outcome"] == "ok" else line["outcome"], line["detail"])
    expected = {e: entry if isinstance(entry, tuple) else (entry, None) for e, entry in table.items()}
    assert found == expected


def invalid(detail):
    return ("invalid_result", detail)


# ---- forms -----------------------------------------------------------------------------


def test_what_the_encoder_takes_is_as_ever(pyspawner):
    table = {
        "None": "null",
        "[True, 1, -2.5, 'ä😀\\x7f\\u2028', 1e16]": '[true,1,-2.5,"ä😀\x7f\u2028",1e+16]',
        "{'b': 1, 'a': (1, 2), 3: {}, 4.5: [], None: 0, False: 1}": (
            '{"b":1,"a":[1,2],"3":{},"4.5":[],"null":0,"false":1}'
        ),
        "Pair(1, Pair(2, 3))": "[1,[2,3]]",
        "[Level.HIGH, Kind.A, Text('t'), Table(k=1)]": '[3,"a","t",{"k":1}]',
        "collections.Counter('aab')": '{"a":2,"b":1}',
        "10**4299 // 10**4298": "10",
        "{'2013': {'1': 2}, 'true': [{'null': 0}]}": '{"2013":{"1":2},"true":[{"null":0}]}',
    }
    check(pyspawner, table)
    # And the same beside a value that it does not take.
    check(pyspawner, {f"[{e}, decimal.Decimal(7)]": f'[{text},"7"]' for e, text in table.items()})


def test_standard_library(pyspawner):
    check(
        pyspawner,
        {
            "datetime.datetime(2013, 1, 2, 3, 4, 5)": '"2013-01-02T03:04:05"',
            "datetime.datetime(2013, 1, 2, 3, 4, 5, 6, datetime.timezone.utc)": '"2013-01-02T03:04:05.000006+00:00"',
            "datetime.datetime(2013, 7, 2, 3, tzinfo=zoneinfo.ZoneInfo('Europe/Berlin'))": (
                '"2013-07-02T03:00:00+02:00"'
            ),
            "datetime.date(2013, 1, 2)": '"2013-01-02"',
            "datetime.time(3, 4)": '"03:04:00"',
            "datetime.timedelta(days=1, milliseconds=500)": "86400.5",
            "decimal.Decimal('1.10')": '"1.10"',
            "decimal.Decimal('1E+3')": '"1E+3"',
            "fractions.Fraction(1, 3)": '"1/3"',
            "uuid.UUID(int=7)": '"00000000-0000-0000-0000-000000000007"',
            "[pathlib.Path('/x'), pathlib.PurePosixPath('y/z'), pathlib.PureWindowsPath('c:/w')]": (
                '["/x","y/z","c:\\\\w"]'
            ),
            "[ipaddress.ip_address('::1'), ipaddress.ip_network('10.0.0.0/8'), ipaddress.ip_interface('10.0.0.1/8')]": (
                '["::1","10.0.0.0/8","10.0.0.1/8"]'
            ),
            "[Color.RED, Color.DAY, Bits.ONE | Bits.TWO]": '["red","2013-01-02",3]',
            "collections.UserString('u')": '"u"',
            "{3, 1, 2}": "[1,2,3]",
            "frozenset('zyxwvutsrqponm')": json.dumps(sorted("zyxwvutsrqponm"), separators=(",", ":")),
            "{'b', 'a', None, 2, (1, 2), frozenset({2, 1})}": '["a","b",2,[1,2],[1,2],null]',
            "{frozenset({2}), frozenset({1}), frozenset({3})}": "[[1],[2],[3]]",
            "{datetime.date(2013, 1, d) for d in range(1, 4)}": '["2013-01-01","2013-01-02","2013-01-03"]',
            "collections.deque([1, {2}])": "[1,[2]]",
            "range(3)": "[0,1,2]",
            "array.array('d', [1.5, 2])": "[1.5,2.0]",
            "[{'b': 1, 'a': 2}.keys(), {'b': 1, 'a': 2}.values(), {'b': 1}.items()]": '[["b","a"],[1,2],[["b",1]]]',
            "collections.UserList([1])": "[1]",
            "types.MappingProxyType({'a': {1}})": '{"a":[1]}',
            "collections.ChainMap({'a': 1}, {'b': 2})": '{"b":2,"a":1}',
            "[collections.UserDict(a=1), collections.OrderedDict(b={2})]": '[{"a":1},{"b":[2]}]',
            "ByName()": '{"a":"A","b":"B"}',
            "Point(1, Point(2, {3}))": '{"x":1,"y":{"x":2,"y":[3]}}',
            "Slotted(datetime.date(2013, 1, 2))": '{"when":"2013-01-02"}',
            "tensor()": ("[[1.5,null]]", "result[0][1] is NaN and became null"),
        },
    )


def test_keys(pyspawner):
    check(
        pyspawner,
        {
            "{datetime.date(2013, 1, 2): 1, uuid.UUID(int=7): 2, decimal.Decimal('1.10'): 3, pathlib.Path('/x'): 4}": (
                '{"2013-01-02":1,"00000000-0000-0000-0000-000000000007":2,"1.10":3,"/x":4}'
            ),
            "{Color.RED: 1, Color.DAY: 2, Level.HIGH: 3, Kind.A: {4}}": '{"red":1,"2013-01-02":2,"3":3,"a":[4]}',
            "{1: {2}, 2.5: 3, True: 4, None: 5}": '{"1":4,"2.5":3,"null":5}',
            "{datetime.timedelta(seconds=1): 1}": '{"1.0":1}',
            "{float('nan'): 1}": ('{"null":1}', "a key of result is NaN and became null"),
            "{1: 'int', '1': 'str'}": invalid('result: dict; two of its keys are "1" in JSON'),
            "[{True: 0, 'true': 1}]": invalid('result[0]: dict; two of its keys are "true" in JSON'),
            "{'a': [{None: 0, 'null': 1}]}": invalid('result["a"][0]: dict; two of its keys are "null" in JSON'),
            "{Color.DAY: 0, datetime.date(2013, 1, 2): 1}": invalid(
                'result: dict; two of its keys are "2013-01-02" in JSON'
            ),
            "{'a': {(1, 2): 3}}": invalid('a key of result["a"]: tuple; keys are text in JSON'),
            "{frozenset({1}): 3}": invalid("a key of result: frozenset; keys are text in JSON"),
            "{b'k': 3}": invalid("a key of result: bytes; return it decoded, or in base64"),
            "{'\\ud800': 3}": invalid(
                "a key of result: str; it has half of a surrogate pair at 0; decode it with errors='replace'"
            ),
        },
    )


def test_nan_and_infinities_become_null_and_are_named(pyspawner):
    check(
        pyspawner,
        {
            "float('nan')": ("null", "result is NaN and became null"),
            "{'nan': float('nan'), 'x': [1.5, float('-inf')]}": (
                '{"nan":null,"x":[1.5,null]}',
                'result["nan"] is NaN and became null; result["x"][1] is -Infinity and became null',
            ),
            "[float('inf')] * 100": (
                "[" + ",".join(["null"] * 100) + "]",
                "".join(f"result[{n}] is Infinity and became null; " for n in range(3)) + "and 97 more",
            ),
            "decimal.Decimal('NaN')": ("null", "result is NaN and became null"),
            "{'ä\\n\\x1b' * 30: float('nan')}": (
                json.dumps({"ä\n\x1b" * 30: None}, ensure_ascii=False, separators=(",", ":")),
                'result["' + ("ä\\n\\u001b" * 30)[: 13 * 9 + 1] + '…"] is NaN and became null',
            ),
        },
    )


def test_numpy(pyspawner):
    time = "numpy.datetime64('2013-01-02T03:04:05{}')"
    check(
        pyspawner,
        {
            "[numpy.int64(3), numpy.uint8(255), numpy.float32(0.5), numpy.float64(0.1), numpy.float16(0.25)]": (
                "[3,255,0.5,0.1,0.25]"
            ),
            "[numpy.bool_(True), numpy.str_('s'), numpy.longdouble(1.5)]": '[true,"s",1.5]',
            "numpy.array([[1, 2], [3, 4]])": "[[1,2],[3,4]]",
            "[numpy.array(5), numpy.array([]), numpy.array(['a', 'b']), numpy.array([True])]": (
                '[5,[],["a","b"],[true]]'
            ),
            "numpy.array([1.5, float('nan'), float('inf')])": (
                "[1.5,null,null]",
                "result[1] is NaN and became null; result[2] is Infinity and became null",
            ),
            "{'a': numpy.float32('nan')}": ('{"a":null}', 'result["a"] is NaN and became null'),
            "numpy.array([{1}, None, numpy.int8(2), {'k': numpy.arange(2)}], dtype=object)": '[[1],null,2,{"k":[0,1]}]',
            f"[{time.format('')}, {time.format('.5')}, {time.format('.123456789')}]": (
                '["2013-01-02T03:04:05","2013-01-02T03:04:05.500000","2013-01-02T03:04:05.123456789"]'
            ),
            "numpy.array(['2013-01-02', 'NaT'], dtype='M8[ns]')": '["2013-01-02T00:00:00",null]',
            "numpy.array('2013-01-02', dtype='M8[D]')": '"2013-01-02"',
            "[numpy.timedelta64(1500, 'ms'), numpy.timedelta64('NaT'), numpy.array([1], 'm8[m]')]": "[1.5,null,[60.0]]",
            "numpy.array([(1, '2013-01-02', 0.5)], dtype=[('n', int), ('t', 'M8[ns]'), ('f', float)])": (
                '[{"n":1,"t":"2013-01-02T00:00:00","f":0.5}]'
            ),
            "numpy.array([(1, 2)], dtype=[('a', int), ('b', int)])[0]": '{"a":1,"b":2}',
            "numpy.array([(1, 2)], dtype=[('a', int), ('b', int)]).view(numpy.recarray)": '[{"a":1,"b":2}]',
            "numpy.ma.array([1, 2], mask=[False, True])": "[1,null]",
            "numpy.ma.array([1.5, 2], mask=[False, True])": "[1.5,null]",
            "numpy.matrix([[1, 2]])": "[[1,2]]",
            "{numpy.int64(3): {numpy.int64(2), numpy.int64(1)}, numpy.str_('s'): 1}": '{"3":[1,2],"s":1}',
            "{numpy.int64(1): 0, '1': 1}": invalid('result: dict; two of its keys are "1" in JSON'),
            "numpy.array([1j])": invalid("result[0]: complex; return its real and imag"),
            "[numpy.complex64(1j)]": invalid("result[0]: complex; return its real and imag"),
            "{'b': numpy.bytes_(b'x')}": invalid('result["b"]: bytes_; return it decoded, or in base64'),
            "numpy.array([b'x'])": invalid("result[0]: bytes; return it decoded, or in base64"),
            "numpy.random.default_rng()": invalid("result: Generator; it has no JSON form"),
        },
        "--preload",
        "numpy",
    )
    (line,) = lines(pyspawner, "evaluate", [["zero_dimensional_cycle()"]])
    assert line["outcome"] == "invalid_result" and "RecursionError" in line["detail"]


def test_pandas(pyspawner):
    check(
        pyspawner,
        {
            "pandas.Timestamp('2013-01-02 03:04:05')": '"2013-01-02T03:04:05"',
            "pandas.Timestamp('2013-01-02 03:04:05.000000001', tz='UTC')": '"2013-01-02T03:04:05.000000001+00:00"',
            "[pandas.NaT, pandas.NA, None]": "[null,null,null]",
            "pandas.Timedelta('1 days 00:00:00.5')": "86400.5",
            "[pandas.Period('2013-01'), pandas.Period('2013-01-02', 'D')]": '["2013-01","2013-01-02"]',
            "pandas.Interval(0, 1)": '"(0, 1]"',
            "pandas.date_range('2013-01-02', periods=2)": '["2013-01-02T00:00:00","2013-01-03T00:00:00"]',
            "[pandas.Index([1, 2]), pandas.Categorical(['a', 'b']), pandas.array([1, None])]": (
                '[[1,2],["a","b"],[1,null]]'
            ),
            "pandas.DataFrame({'t': pandas.to_datetime(['2013-01-02']), 'f': [0.5], 'n': [1]}).to_dict('records')": (
                '[{"t":"2013-01-02T00:00:00","f":0.5,"n":1}]'
            ),
            "pandas.Series([1, 2], index=pandas.to_datetime(['2013-01-02', '2013-01-03'])).to_dict()": (
                '{"2013-01-02T00:00:00":1,"2013-01-03T00:00:00":2}'
            ),
            "pandas.Series([1, 2], index=pandas.period_range('2013-01', periods=2, freq='M')).to_dict()": (
                '{"2013-01":1,"2013-02":2}'
            ),
            "pandas.DataFrame([[1, 2]], columns=[1, '1']).to_dict()": invalid(
                'result: dict; two of its keys are "1" in JSON'
            ),
            "{'a': [0, 1, 2, pandas.DataFrame()]}": invalid('result["a"][3]: DataFrame; return its to_dict()'),
            "{'s': pandas.Series([1])}": invalid('result["s"]: Series; return its to_list() or to_dict()'),
        },
        "--preload",
        "pandas",
    )


def test_pyarrow(pyspawner):
    check(
        pyspawner,
        {
            "[pyarrow.scalar(1), pyarrow.scalar('a'), pyarrow.scalar(None)]": '[1,"a",null]',
            "pyarrow.scalar(datetime.datetime(2013, 1, 2))": '"2013-01-02T00:00:00"',
            "pyarrow.array([1, None, 2])": "[1,null,2]",
            "pyarrow.chunked_array([[1], [2.5]], pyarrow.float64())": "[1.0,2.5]",
            "[pyarrow.table({'a': [1]})]": invalid("result[0]: Table; return its to_pylist()"),
        },
        "--preload",
        "pyarrow",
    )


@pytest.mark.parametrize(
    ("library", "table"),
    [
        (
            "attrs",
            {
                "attrs.make_class('Thing', ['a', 'b'])(1, {2})": '{"a":1,"b":[2]}',
                "attrs.make_class('Slotted', ['a'], slots=True, frozen=True)(datetime.date(2013, 1, 2))": (
                    '{"a":"2013-01-02"}'
                ),
            },
        ),
        (
            "pydantic",
            {
                "pydantic.create_model('Thing', a=(int, 1), d=(decimal.Decimal, decimal.Decimal('1.10')))()": (
                    '{"a":1,"d":"1.10"}'
                ),
                "[pydantic.create_model('Thing', x=(object, None))(x=b'')]": invalid(
                    'result[0]["x"]: bytes; return it decoded, or in base64'
                ),
            },
        ),
        (
            "polars",
            {
                "[polars.DataFrame({'a': [1]})]": invalid("result[0]: DataFrame; return its to_dicts() or to_dict()"),
                "polars.Series([1])": invalid("result: Series; return its to_list()"),
            },
        ),
    ],
)
def test_libraries_that_the_tests_do_not_need(pyspawner, library, table):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    check(pyspawner, table, "--preload", library)


# ---- what has no form ------------------------------------------------------------------


def test_what_has_no_form_fails_with_the_path_to_it(pyspawner):
    deep = "result" + "[0]" * 6 + "…" + "[0]" * 6
    surrogate = "str; it has half of a surrogate pair at {}; decode it with errors='replace'"
    check(
        pyspawner,
        {
            "{'a': [0, 1, 2, DataFrame()]}": invalid('result["a"][3]: DataFrame; return its to_dict()'),
            "object()": invalid("result: object; it has no JSON form"),
            "[b'x']": invalid("result[0]: bytes; return it decoded, or in base64"),
            "[bytearray(), 1]": invalid("result[0]: bytearray; return it decoded, or in base64"),
            "memoryview(b'')": invalid("result: memoryview; return it decoded, or in base64"),
            "{'c': 1j}": invalid('result["c"]: complex; return its real and imag'),
            "(n for n in range(3))": invalid("result: generator; return it as a list"),
            "{'z': zip()}": invalid('result["z"]: zip; return it as a list'),
            "yields()": invalid("result: async_generator; return a list of what it yields"),
            "[evaluate]": invalid("result[0]: function; it has no JSON form"),
            "[Point]": invalid("result[0]: type; it has no JSON form"),
            "[print, sys]": invalid("result[0]: builtin_function_or_method; it has no JSON form"),
            "ValueError('x')": invalid("result: ValueError; it has no JSON form"),
            "{1, (2, b'x')} - {1}": invalid("result[*][1]: bytes; return it decoded, or in base64"),
            "Point(1, {'k': object()})": invalid('result["y"]["k"]: object; it has no JSON form'),
            "cycle()": invalid('result["a"][1]: dict; it contains itself'),
            "nested(201)": invalid("the result has more than 200 levels"),
            "nested(201, decimal.Decimal(1))": invalid(f"{deep}: list; it is deeper than 200 levels"),
            "nested(100_000)": invalid(f"{deep}: list; it is deeper than 200 levels"),
            "[10**4300]": invalid("result[0]: int; it has more than 4300 digits; return its hex()"),
            "[{'k': -10**5000}]": invalid('result[0]["k"]: int; it has more than 4300 digits; return its hex()'),
            "'\\ud800'": invalid("result: " + surrogate.format(0)),
            "['\\\\ud800', 'x\\ude00\\U0001f600']": invalid("result[1]: " + surrogate.format(1)),
            "{'p': pathlib.Path(os.fsdecode(b'/\\xff'))}": invalid('result["p"]: ' + surrogate.format(1)),
            "Broken(ValueError('no'))": invalid("result: reading it raised ValueError: no"),
            "Broken(Unprintable())": invalid("result: reading it raised Unprintable"),
            "[Broken(SystemExit(0))]": invalid("result[0]: reading it raised SystemExit: 0"),
            "{'x' * 50: [object()]}": invalid('result["' + "x" * 40 + '…"][0]: object; it has no JSON form'),
            "named('a\\n\\x1b[31m\\u2028')": invalid("result: a\\u{a}\\u{1b}[31m\\u{2028}; it has no JSON form"),
        },
    )
    (line,) = lines(pyspawner, "evaluate", [["named('n' * 100_000)"]])
    assert line["outcome"] == "invalid_result" and line["detail"] == "result: " + "n" * 992


def test_what_readers_take_is_passed_on(pyspawner):
    """The control: at the limits, and text that only looks like halves of a pair."""
    for expression, value in {
        "nested(200)": None,
        "nested(199, decimal.Decimal(1))": None,
        "10**4299": 10**4299,
        "['😀\\\\ud800', '\\\\\\\\ud800']": ["😀\\ud800", "\\\\ud800"],
    }.items():
        line = lines(pyspawner, "evaluate", [[expression]])[0]
        assert (line["outcome"], line["detail"]) == ("ok", None)
        assert value is None or line["result"] == value


def test_output_is_not_lost_with_the_result(pyspawner):
    frame, other = lines(pyspawner, "write_then_fail", [["frame"], ["other"]])
    for line in (frame, other):
        assert (line["outcome"], line["exit_code"], line["result"]) == ("invalid_result", 0, None)
        assert (line["stdout"], line["stderr"]) == ("before\n", "error\n")
    assert frame["detail"] == 'result["a"][3]: DataFrame; return its to_dict()'


def test_large_arrays_are_passed_on_quickly(pyspawner):
    config = '[profile.default.limits]\noutput = "64M"\n'
    for expression in ("numpy.arange(1_000_000)", "numpy.linspace(0, 1, 1_000_000)"):
        (line,) = lines(pyspawner, "evaluate", [[expression]], "--preload", "numpy", config=config)
        assert line["outcome"] == "ok" and len(line["result"]) == 1_000_000
        assert line["wall_ms"] < 10_000


def test_nothing_is_imported_for_a_result(pyspawner, open_folder):
    (open_folder / "small.py").write_text(
        "import atexit, sys\n"
        "def main(*_):\n"
        "    names = ('numpy', 'pandas', 'asyncio', 'dataclasses', 'inspect', 'decimal')\n"
        "    atexit.register(lambda: print([n for n in names if n in sys.modules]))\n"
        "    return [float('nan'), {1}]\n"
    )
    (line,) = pyspawner.map("small.main", [[]], "--path", open_folder).lines
    assert (line["outcome"], line["result"], line["stdout"]) == ("ok", [None, [1]], "[]\n")


# ---- awaitables ------------------------------------------------------------------------


def test_what_is_awaitable_is_awaited(pyspawner):
    expected = {"wait": "value", "wait_later": "later", "returns_coroutine": "returned", "wait_in_own_loop": "own"}
    for function, what in expected.items():
        (line,) = lines(pyspawner, function, [[]])
        assert line["outcome"] == "ok" and line["result"]["what"] == what, line
        assert (line["stdout"], line["stderr"]) == ("waited\n", "")
    (line,) = lines(pyspawner, "wait", [["in a thread"]])
    assert line["result"] == 1


def test_the_loop_is_that_of_the_policy_in_force(pyspawner, open_folder):
    (open_folder / "chooses.py").write_text(
        "import asyncio, results\nasyncio.set_event_loop_policy(results.Policy())\n"
    )
    (line,) = lines(pyspawner, "wait", [[]], "--path", open_folder, "--preload", "chooses")
    assert line["result"]["loop"] == "Loop"


def test_a_coroutine_ends_as_a_function_does(pyspawner):
    fail, leave, interrupt, task = lines(pyspawner, "wait", [["fail"], ["leave"], ["interrupt"], ["in a task"]])
    assert (fail["outcome"], fail["exit_code"]) == ("exited", 1)
    assert fail["stderr"].endswith("ValueError: from a coroutine\n") and "<pyspawner>" not in fail["stderr"]
    assert [(line["outcome"], line["exit_code"], line["stderr"]) for line in (leave, task)] == [("exited", 3, "")] * 2
    assert (interrupt["outcome"], interrupt["exit_code"]) == ("exited", 1)
    assert interrupt["stderr"].rstrip().endswith("KeyboardInterrupt")


def test_run_awaits_too(pyspawner):
    done = pyspawner.run("results.wait")
    words, result = done.stdout.splitlines()
    assert (done.status, words, json.loads(result)["what"], done.said) == (0, "waited", "value", "")
    assert pyspawner.run("results.wait", "leave").status == 3


def test_asyncio_is_imported_in_the_host_if_it_will_be_needed(pyspawner, open_folder):
    (open_folder / "lazy.py").write_text(
        "import sys\n"
        "async def waits(): return HERE()\n"
        "def plain(): return HERE()\n"
        "def HERE(): return 'asyncio' in sys.modules\n"
    )
    flags = ["--path", open_folder, "--warm-up", "lazy.HERE"]
    assert pyspawner.map("lazy.waits", [[]], *flags).lines[0]["result"] is True
    assert pyspawner.map("lazy.plain", [[]], *flags).lines[0]["result"] is False


# ---- the channel -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "payload", "length"),
    [
        ("R", "[1, 2", 6),
        ("R", "", 1),
        ("R", "not json", None),
        ("R", "[1,\n2]", None),
        ("R", '"\xe2\x80\xa8"', None),
        ("R", "NaN", None),
        ("X", "result: object", None),
        ("?", "unknown", None),
        ("N", "cut", 100),
    ],
)
def test_a_result_that_is_cut_or_malformed_is_not_ok(pyspawner, tag, payload, length):
    (line,) = lines(pyspawner, "write_record", [[tag, payload, 0, length]])
    assert (line["outcome"], line["exit_code"], line["result"]) == ("invalid_result", 0, None)
    assert line["detail"]


def test_a_job_that_leaves_without_returning_is_ok(pyspawner):
    """The control: no result was lost."""
    (line,) = lines(pyspawner, "write_record", [["P", "{}", 0]])
    assert (line["outcome"], line["result"], line["detail"]) == ("ok", None, "it ended before child_main returned")


@pytest.mark.parametrize(("tag", "payload"), [("R", "1"), ("X", "no form"), ("N", "note"), ("R", "cut")])
def test_the_jobs_word_changes_no_other_outcome(pyspawner, tag, payload):
    (line,) = lines(pyspawner, "write_record", [[tag, payload, 3, 1000 if payload == "cut" else None]])
    assert (line["outcome"], line["exit_code"], line["result"], line["detail"]) == ("exited", 3, None, None)


def test_text_of_a_job_is_plain_and_bounded(pyspawner):
    hostile = "\x1b]0;\x07\n\x85\xe2\x80\xa8\xe2\x80\xae\xff" + "x" * 5000
    command = pyspawner.command("map", "results.write_record", "--ordered")
    jobs = "".join(json.dumps(job) + "\n" for job in [["X", hostile, 0], ["N", hostile, "return"]])
    done = pyspawner.finish(command, jobs, 60)
    assert len(done.stdout.split("\n")) == 3 and done.stdout.isprintable() is False
    assert all(character == "\n" or character.isprintable() or character == "\ufffd" for character in done.stdout)
    reason, note = done.lines
    assert (reason["outcome"], note["outcome"], note["result"]) == ("invalid_result", "ok", "returned")
    for line in (reason, note):
        assert line["detail"].startswith("\\u{1b}]0;\\u{7}\\u{a}") and len(line["detail"]) < 1100


def test_a_closed_or_replaced_channel_harms_only_its_job(pyspawner):
    for job in (["close_channel"], ["replace_channel", "/tmp/mine"], ["replace_channel", "/dev/null"]):
        function, *args = job
        (line,) = lines(pyspawner, function, [args])
        assert (line["outcome"], line["exit_code"], line["result"]) == ("exited", 1, None)
        assert "the result is lost" in line["stderr"] and "Traceback" not in line["stderr"]
        assert line["stdout"] == ("replaced\n" if args else "")


def test_whatever_is_on_the_channel_harms_only_its_job(pyspawner):
    """Random bytes, random records and honest siblings between them."""
    chance = random.Random(14)
    jobs = []
    for _ in range(60):
        data = b""
        for _ in range(chance.randrange(4)):
            payload = chance.choice([b"1", b'"x"', b"[1,", b"\n", chance.randbytes(chance.randrange(300))])
            length = len(payload) + chance.choice([0, 0, 0, 1, -len(payload), 1 << 31])
            data += struct.pack("<cI", chance.choice([b"R", b"X", b"N", b"B", b"P", b"\0"]), length) + payload
        data += chance.randbytes(chance.choice([0, 0, 1, 4, 5, 6, 1000]))
        jobs.append([data.decode("latin-1"), chance.choice([0, 0, 3, "return"])])
        jobs.append(["", "return"])
    done = pyspawner.map("results.write_raw", jobs, "--ordered", "-j", "2", config=LIMITS)
    assert [line["id"] for line in done.lines] == [str(n + 1) for n in range(len(jobs))]
    for (data, then), line in zip(jobs, done.lines, strict=True):
        if [data, then] == ["", "return"]:
            assert line["outcome"] == "ok" and line["detail"] is None, line
        if then == 3:
            assert (line["outcome"], line["exit_code"], line["result"]) == ("exited", 3, None)
        else:
            assert line["outcome"] in ("ok", "invalid_result") and line["exit_code"] == 0
            assert line["outcome"] == "ok" or line["result"] is None
            assert line["outcome"] == "invalid_result" or line["detail"] is not None or line["result"] is not None
    assert {line["outcome"] for line in done.lines} == {"ok", "invalid_result", "exited"}
