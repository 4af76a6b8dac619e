"""The site in a headless Chromium: every page on a phone, search, formulas, pictures, dark mode

`python -m scripts.dev.browser [FOLDER]`, at the top of a checkout whose site is built (`make docs`). With
RM_NBDEV_SHOTS=FOLDER it also leaves screenshots."""

import functools, http.server, os, shutil, sys, tempfile, threading
from pathlib import Path
from scripts.dev.pages import notebook_names

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome')
QUIET = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
         '--disable-component-update', '--disable-sync']
LOSSES = 'training/02_losses.html'


def find_browser():
    "Path of a Chromium, None if there is none"
    return next((p for o in BROWSERS if (p := shutil.which(o))), None)


class Files(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


def served(folder):
    "Address and server of a folder"
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Files, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f'http://127.0.0.1:{server.server_address[1]}/', server


TOO_WIDE = '''() => [...document.querySelectorAll('article *')].filter(e => {
    if (e.getBoundingClientRect().right <= innerWidth + 1) return false
    for (let p = e.parentElement; p && p.tagName != 'ARTICLE'; p = p.parentElement) if (getComputedStyle(p).overflowX != 'visible') return false
    return true }).slice(0, 3).map(e => e.tagName + ' ' + e.textContent.slice(0, 60))'''


def listen(page, url):
    "What a page complains of, and what it asks of other hosts; the list grows while the page is used"
    said = []
    page.on('console', lambda m: said.append(f'console {m.type}: {m.text}') if m.type in ('error', 'warning') else None)
    page.on('pageerror', lambda e: said.append(f'error: {e}'))
    page.on('requestfailed', lambda r: said.append(f'not loaded: {r.url}') if 'ABORTED' not in (r.failure or '') else None)
    page.on('request', lambda r: said.append(f'asks another host: {r.url}') if not r.url.startswith((url, 'data:', 'blob:')) else None)
    return said


def look(context, url, name):
    "What is wrong with one page"
    page = context.new_page()
    said = listen(page, url)
    page.goto(url + name, wait_until='load')
    if page.evaluate('document.documentElement.scrollWidth') > page.viewport_size['width']:
        said.append(f'scrolls sideways: {page.evaluate(TOO_WIDE)}')
    if not page.evaluate("document.querySelector('article h1')?.textContent"): said.append('has no title')
    page.close()
    return said


def check_phone(context, url, site):
    "Every page at 390 pixels"
    pages = sorted(p.relative_to(site).as_posix() for p in site.rglob('*.html'))
    missing = {f'{o}.html' for o in notebook_names('nbs')} - set(pages)
    assert not missing, f'the site is older than the notebooks: make docs ({missing})'
    wrong = {o: said for o in pages if (said := look(context, url, o))}
    print(f'{len(pages)} pages at 390 px: {len(wrong)} with complaints', flush=True)
    assert not wrong, wrong


def check_faults_are_found(context):
    "A page with planted faults: each is named"
    with tempfile.TemporaryDirectory() as d:
        (Path(d)/'bad.html').write_text('<article><h1>X</h1><div style="width:600px">wide</div><script>nothing()</script>'
                                        '<img src="gone.png"><img src="http://other.invalid/x.png"></article>')
        bad, server = served(d)
        said = ' | '.join(look(context, bad, 'bad.html'))
        server.shutdown()
    for o in 'nothing is not defined', '404', 'scrolls sideways', 'asks another host: http://other.invalid/x.png': assert o in said, said


def check_search(page, url):
    "The search finds a function, and its hit leads to it"
    page.goto(url + 'index.html')
    page.click('input.md-search__input')
    page.fill('input.md-search__input', 'bt_loss')
    page.wait_for_selector('.md-search-result__link')
    hits = page.eval_on_selector_all('.md-search-result__link', 'es => es.map(e => e.href)')
    assert any(LOSSES in h and '#bt_loss' in h for h in hits), hits
    page.goto(next(h for h in hits if '#bt_loss' in h))
    assert page.inner_text('#bt_loss').startswith('bt_loss')


def check_pictures(page, url):
    "Formulas and pictures have a size"
    page.goto(url + LOSSES)
    boxes = [b for e in page.query_selector_all('.math.block math') if (b := e.bounding_box())]
    assert boxes and all(b['width'] > 50 and b['height'] > 10 for b in boxes), boxes
    assert not page.query_selector_all('.arithmatex') and page.query_selector('math mfrac')
    for name in LOSSES, 'demos/demo_bt.html', 'demos/demo_grm.html':
        page.goto(url + name)
        sizes = page.eval_on_selector_all('article img', 'es => es.map(e => [e.naturalWidth, e.naturalHeight, Math.round(e.getBoundingClientRect().width)])')
        assert sizes and all(w > 200 and h > 100 and shown > 200 for w, h, shown in sizes), (name, sizes)


def check_colours(page, url):
    "Light and dark as the system has it; the contents list; the link to the source"
    def brightness(scheme):
        page.emulate_media(color_scheme=scheme)
        page.goto(url + LOSSES)
        return sum(map(int, page.evaluate('getComputedStyle(document.body).backgroundColor').strip('rgba()').split(',')[:3]))
    light, dark = brightness('light'), brightness('dark')
    assert light > 600 > 200 > dark, (light, dark)
    assert page.query_selector('.md-nav--secondary a[href="#bt_loss"]') and page.query_selector('article .source')


def main():
    "`python -m scripts.dev.browser [FOLDER]`"
    from playwright.sync_api import sync_playwright
    site = Path(sys.argv[1] if len(sys.argv) > 1 else '_docs').resolve()
    assert find_browser(), f"no browser: install one of {', '.join(BROWSERS)}"
    assert (site/'index.html').is_file(), f'{site.name}: no site; build it with make docs'
    url, server = served(site)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=find_browser(), args=QUIET)
        phone, desk = (browser.new_context(viewport=dict(width=w, height=h)) for w, h in ((390, 844), (1280, 900)))
        check_phone(phone, url, site)
        check_faults_are_found(phone)
        page = desk.new_page()
        complaints = listen(page, url)
        for check in check_search, check_pictures, check_colours: check(page, url); print(f'{check.__name__} passed', flush=True)
        assert not complaints, complaints
        if shots := os.environ.get('RM_NBDEV_SHOTS'):
            for name, context in ('desk', desk), ('phone', phone):
                page = context.new_page()
                page.goto(url + LOSSES)
                page.screenshot(path=f'{shots}/losses-{name}.png')
        browser.close()
    server.shutdown()


if __name__ == '__main__': main()
