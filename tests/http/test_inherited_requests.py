"""Nothing of a request is in the memory of later children, nor is what jobs wrote and gave back."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest
from service import serving

ATTACKS = Path(__file__).parent.parent / "security" / "jobs"


@pytest.fixture
def scanner(open_folder):
    library = open_folder / "scanner.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", library, ATTACKS / "scanner.c"], check=True)
    open_folder.chmod(0o755)
    return str(library)


def test_nothing_of_bodies_headers_tokens_files_and_results_is_found(tmp_path, scanner):
    canary = "c4nary-" + os.urandom(12).hex()
    key = [byte ^ 0x55 for byte in canary.encode()]
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(f'[tenant.a]\ntoken_sha256 = ["{hashlib.sha256(canary.encode()).hexdigest()}"]\n')
    config = f'[pool]\nconcurrency = 1\nspares = 1\n[serve]\ntokens = "{tokens}"\n'
    where = {"child_main": "private_memory.main", "jobs": ATTACKS, "tmp_path": tmp_path}
    with serving("-vvv", config=config, token=canary, **where) as service:
        job = {
            "id": canary,
            "args": [canary * 50],
            "kwargs": {"k": canary},
            "stdin": canary * 50,
            "files": {f"{canary}.txt": canary * 50},
            "collect": [f"{canary}.txt"],
            "env": {"CANARY": canary},
        }
        for n in range(50):
            kinds = [{"idempotency-key": f"{canary}-{n}"}, {"accept": "text/event-stream", "x-other": canary}]
            answer = service.ask("POST", "/v1/jobs", job, kinds[n % 2])
            assert answer.status == 200 and answer.body.count(canary.encode()) > 50
        # Refused requests leave nothing either.
        service.ask("POST", "/v1/jobs", f'{{"{canary}": 1}}')
        service.ask("GET", f"/v1/jobs/{canary}?{canary}={canary}")
        assert len(service.map([job] * 10)) == 10
        for _ in range(2):
            assert service.run(key, scanner)["result"] == {"memory": 0, "files": []}
        # The control: what is this job's own is found.
        own = service.run(key, scanner, kwargs={"k": canary * 3})
        assert "TypeError" not in own["stderr"] and own["result"] != {"memory": 0, "files": []}, own
