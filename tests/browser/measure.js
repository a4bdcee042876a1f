// What a reader would find broken in the notebook that JupyterLab shows: a list of sentences, each with its cell.
// It runs in the page, when all cells are in it and all folded parts are open.
(limits) => {
  const notebook = window.jupyterapp.shell.currentWidget.content;
  const found = [];
  const shown = (element) => element.getClientRects().length > 0;
  const beyond = (element) => element.scrollWidth - element.clientWidth;  // pixels that are out of sight
  const scrolls = (element) => ['auto', 'scroll'].includes(getComputedStyle(element).overflowX) && beyond(element) > 1;
  const words = (text) => text.trim().split('\n')[0].slice(0, 60);

  if (beyond(notebook.node.querySelector('.jp-WindowedPanel-outer')) > 1) {
    found.push('the notebook has a horizontal scroll bar');
  }
  notebook.widgets.forEach((cell, index) => {
    const say = (problem) => found.push(`cell ${index + 1} (${words(cell.model.sharedModel.source)}): ${problem}`);

    for (const editor of cell.node.querySelectorAll('.cm-scroller')) {
      if (shown(editor) && beyond(editor) > 1) {
        const longest = Math.max(...cell.model.sharedModel.source.split('\n').map((line) => line.length));
        say(`the code is ${beyond(editor)} px wider than the cell: its longest line has ${longest} characters`);
      }
    }

    for (const column of cell.node.querySelectorAll('.jp-MarkdownOutput, .jp-OutputArea-output')) {
      if (!shown(column)) continue;
      const box = column.getBoundingClientRect();
      const kind = column.classList.contains('jp-MarkdownOutput') ? 'text' : `output (${column.dataset.mimeType ?? 'widget'})`;
      const inside = [column, ...column.querySelectorAll('*')].filter(shown);

      for (const element of inside) {
        const name = element === column ? 'it' : `its <${element.localName}>`;
        if (scrolls(element)) say(`${kind}: ${name} has a horizontal scroll bar, for ${beyond(element)} px`);
      }
      for (const element of inside.filter((e) => e.matches('table, img, svg, canvas, video, pre, mjx-container'))) {
        const over = Math.round(element.getBoundingClientRect().right - box.right);
        if (over > 1) say(`${kind}: its <${element.localName}> ends ${over} px beyond the column`);
      }
      for (const image of inside.filter((e) => e.localName === 'img')) {
        if (!image.naturalWidth) {
          say(`${kind}: an image was not loaded (${image.alt || image.src.slice(0, 80)})`);
          continue;
        }
        const wanted = Number(image.getAttribute('width')) || parseFloat(image.style.width) || image.naturalWidth;
        const part = image.getBoundingClientRect().width / wanted;
        if (part < limits.shrunk) say(`${kind}: an image of ${wanted} px is shrunk to ${Math.round(100 * part)} %`);
      }
      for (const pre of inside.filter((e) => e.localName === 'pre')) {
        const lines = pre.textContent.replace(/\n$/, '').split('\n');
        const style = getComputedStyle(pre);
        const height = pre.clientHeight - parseFloat(style.paddingTop) - parseFloat(style.paddingBottom);
        const each = parseFloat(getComputedStyle(pre.querySelector(':scope > code') ?? pre).lineHeight);
        const more = Math.round(height / each) - lines.length;
        const longest = Math.max(...lines.map((line) => line.length));
        if (more > 0) say(`${kind}: ${more} line(s) are broken; the longest has ${longest} characters`);
      }
      if (inside.some((e) => e.matches('mjx-merror, .MathJax_Error'))) say(`${kind}: a formula that MathJax cannot read`);
      if (column.querySelector('.jupyter-widgets-error-widget')) say(`${kind}: a widget that could not be made`);

      const limit = column.dataset.mimeType === 'application/vnd.jupyter.stderr' ? limits.stderr : limits.output;
      const height = Math.round(column.scrollHeight);
      if (column.matches('.jp-OutputArea-output') && height > limit) say(`${kind}: ${height} px high, over ${limit}`);
    }
    if (cell.node.querySelector('.jp-TrimmedOutputs')) say('more outputs than JupyterLab shows');
  });
  return found;
}
