"use strict";
// Draws the figures, in the colours of the page, and again where those or the paper's width change.
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const charts = [...document.querySelectorAll(".chart")];
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const LIGHT = { ink: "#1c2530", grid: "#dfe3e8", line: "#aab2bd", paper: "#ffffff" };
  const DARK = { ink: "#e3e7ec", grid: "#343c47", line: "#5b6572", paper: "#171c23" };
  // Of A4 within its margins: one figure, or two side by side.
  const PRINTED = { wide: { width: 670, height: 380 }, half: { width: 322, height: 270 } };

  const axis = (own, colours) => ({
    gridcolor: colours.grid,
    zerolinecolor: colours.line,
    linecolor: colours.line,
    ...own,
    title: { standoff: 8, ...own.title },
  });

  function layout(own, colours, width, size) {
    const full = {
      font: { family: "system-ui, sans-serif", size, color: colours.ink },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 12, r: 12, t: 12, b: 12, pad: 2 },
      legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", traceorder: "normal" },
      hoverlabel: { bgcolor: colours.paper, bordercolor: colours.line, font: { color: colours.ink } },
      dragmode: width < 600 ? false : "zoom",
      ...own,
    };
    if (own.xaxis) full.xaxis = axis(own.xaxis, colours);
    if (own.yaxis) full.yaxis = axis(own.yaxis, colours);
    for (const menu of own.updatemenus ?? []) {
      Object.assign(menu, { bgcolor: colours.paper, bordercolor: colours.line, font: { color: colours.ink, size } });
    }
    return full;
  }

  function draw(printing) {
    const colours = dark.matches && !printing ? DARK : LIGHT;
    for (const div of charts) {
      const figure = figures[div.dataset.chart];
      const size = printing ? PRINTED[div.dataset.size] : { width: div.clientWidth };
      const full = { ...layout(figure.layout, colours, size.width, printing ? 11 : 13), ...(printing ? size : { autosize: true }) };
      // Anew each time: what is there would move to its new place, and paper does not wait for it.
      Plotly.newPlot(div, figure.data, full, { responsive: !printing, displayModeBar: false });
    }
  }

  draw(false);
  dark.addEventListener("change", () => draw(false));
  addEventListener("beforeprint", () => {
    document.querySelectorAll("details").forEach((item) => (item.open = true));
    draw(true);
  });
  addEventListener("afterprint", () => draw(false));
})();
