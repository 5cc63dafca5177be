"""The code of the service's README runs as it stands."""

import re
import shutil
import textwrap
from pathlib import Path

from tests.generated.conftest import Service

BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
PLUGGED_IN = """\
from app import SERVICE_NAME, reviews, wiring
from app.platform.kafka.settings import KafkaSettings
from app.platform.runtime import Context
from app.platform.service import Service

service = Service([*wiring.service.components, reviews.component])
context = Context.of(service, SERVICE_NAME, KafkaSettings())
print(*(topic.name for topic in context.topics()), sep="\\n")
"""


def test_the_code_of_the_readme_can_be_plugged_in(base: Service, tmp_path: Path) -> None:
    shutil.copytree(base.path / "app", tmp_path / "app")
    readme = (base.path / "README.md").read_text()
    blocks = [textwrap.dedent(block) for _, block in BLOCK.findall(readme)]
    *first, second_version = blocks
    assert len(first) == 3
    for blocks in (first, [second_version]):
        for block in blocks:
            path = tmp_path / block.partition("\n")[0].removeprefix("# ")
            path.parent.mkdir(exist_ok=True)
            path.write_text(block)
        topics = base.run("python", "-P", "-c", PLUGGED_IN, settings={"PYTHONPATH": str(tmp_path)})
        (event,) = (topic for topic in topics.split() if topic.endswith(".review.written"))
        assert f"{event}.ratings.dlq" in topics.split()
