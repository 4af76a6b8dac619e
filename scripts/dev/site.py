"""The docs site: mkdocs-material from the notebooks, without Quarto and without a network

Hooks of mkdocs (see mkdocs.yml beside this file): they give it the pages, the navigation and the formulas; mkdocs itself
checks the links within and between pages (`--strict`). `python -m scripts.dev.site` writes what follows from the
notebooks: README.md, the navigation for Quarto if it is asked for, the picture and table of the Architecture page, the tables of the Flags page."""

import html, os, re, sys
from pathlib import Path
from xml.etree import ElementTree
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File
from rm_nbdev.core.errors import UsageError
from rm_nbdev.core.files import write_text
from scripts.dev.flags import flags_text
from scripts.dev.house import architecture_text
from scripts.dev.pages import DEMOS, notebook_names, page_markdown, quarto_text, sections

top = Path(__file__).resolve().parents[2]


def on_config(config):
    "The navigation, in the order of the sidebar"
    names = [*notebook_names(top/'nbs'), *(d for d, (file, _) in DEMOS.items() if (top/file).is_file())]
    pages = {k: [f'{o}.md' for o in v] for k, v in sections(names).items()}
    config.nav = [*pages.pop('', []), *({k: v} for k, v in pages.items())]
    return config


def on_files(files, config):
    "A page for each notebook, with its pictures; what cannot be shown stops the build, all of it named"
    bad = []
    notebooks = {name: (top/'nbs'/f'{name}.ipynb', None) for name in notebook_names(top/'nbs')}
    notebooks |= {name: (top/file, title) for name, (file, title) in DEMOS.items() if (top/file).is_file()}
    for name, (path, title) in notebooks.items():
        pictures = {}
        try: text = page_markdown(path, name, top, pictures, title)
        except UsageError as e: bad.append(str(e).replace(f'{top}/', '')); continue
        files.append(File.generated(config, f'{name}.md', content=paragraphs(text)))
        for file, content in pictures.items():
            if not files.get_file_from_path(file): files.append(File.generated(config, file, content=content))
    if bad: raise PluginError('\n'.join(bad))
    return files


_display = re.compile(r'^(?P<ticks>`{3,}).*?^(?P=ticks)`*$|`+[^`\n]+`+|^(?P<math>[ \t]*\$\$.+?\$\$)[ \t]*$', re.M|re.S)


def paragraphs(text):
    "Nested list items by four spaces, as Python-Markdown wants them; a formula on its own lines is its own paragraph"
    text = re.sub(r'^( {2,3})(?=(?:[-*+]|\d+\.) )', '    ', text, flags=re.M)
    return _display.sub(lambda m: f"\n{m['math']}\n" if m['math'] else m[0], text)


_math = re.compile(r'<(?P<tag>span|div) class="arithmatex">(?:\\\((?P<inline>.*?)\\\)|\\\[(?P<block>.*?)\\\])</(?P=tag)>', re.S)
_parts = dict(mfrac=2, msub=2, msup=2, msubsup=3, munder=2, mover=2, munderover=3, mroot=2)  # Children that an element must have


def mathml(tex, display):
    "A formula as MathML; `ValueError` where the converter let something pass that it does not know"
    from latex2mathml.converter import convert
    out = convert(tex, display=display)
    for e in ElementTree.fromstring(out).iter():
        if (e.text or '').startswith('\\'): raise ValueError(f'{e.text} is not known')
        kind = e.tag.rpartition('}')[2]
        if kind in _parts and len(e) != _parts[kind]: raise ValueError(f'a part of {kind} is missing')
    return out.replace('<math ', f'<math alttext="{html.escape(tex, quote=True)}" ', 1)


def on_page_content(text, page, config, files):
    "Formulas as MathML, which browsers show without a script"
    def sub(m):
        inline = m['inline'] is not None
        tex = html.unescape(m['inline'] if inline else m['block']).strip()
        try: out = mathml(tex, 'inline' if inline else 'block')
        except Exception as e: raise PluginError(f'{page.file.src_uri}: formula {tex!r} cannot be read: {e or type(e).__name__}') from None
        return f'<{m["tag"]} class="math{"" if inline else " block"}">{out}</{m["tag"]}>'
    return _math.sub(sub, text)


def readme_text(path=top/'nbs/index.ipynb'):
    "README.md from the front page's notebook: the same text with links from the top of the repository, no pictures"
    text = page_markdown(path, 'index', top, {}, links=False)
    text = re.sub(r'^!\[[^\]]*\]\(index_files/[^)]*\)\n*', '', text, flags=re.M)
    code = r'^ {0,3}(?P<ticks>`{3,}|~{3,}).*?^ {0,3}(?P=ticks)[`~]* *$|`[^`\n]+`'
    def move(m):
        target = m['target']
        if target is None or re.match(r'#|/|[A-Za-z][A-Za-z0-9+.-]*:', target): return m[0]
        return '](' + os.path.normpath(f'nbs/{target}').replace(os.sep, '/')
    text = re.sub(rf'{code}|\]\((?P<target>[^)\s]+)', move, text, flags=re.M|re.S)
    return '<!-- Made from nbs/index.ipynb by `make export`: edit that. -->\n\n' + re.sub(r'\n{3,}', '\n\n', text).strip() + '\n'


def derived():
    "File -> text: what follows from the notebooks"
    return {top/'README.md': readme_text(), top/'nbs/guides/architecture.ipynb': architecture_text(top), top/'nbs/guides/flags.ipynb': flags_text(top)}


def main():
    "`python -m scripts.dev.site`: write README.md and two pages where they are not what they should be; --quarto: nbs/_quarto.yml alone"
    try: files = {top/'nbs/_quarto.yml': quarto_text(top/'nbs')} if '--quarto' in sys.argv[1:] else derived()
    except UsageError as e:
        print(e, file=sys.stderr)
        raise SystemExit(1) from None
    for path, text in files.items():
        if not path.is_file() or path.read_text(encoding='utf-8') != text: write_text(path, text)


if __name__ == '__main__': main()
