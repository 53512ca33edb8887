/** Plotly, which the page unpacks and runs. */
declare const Plotly: any;
